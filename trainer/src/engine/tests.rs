//! What every engine must do, tested on all of them, and that they agree with each other.

mod agreement;
mod contract;
mod device;
mod golden;

use kernels::cuda::{Device, Order, Schedule};

use super::candle::CandleEngine;
use super::cpu::CpuEngine;
use super::cuda::{CudaEngine, Launch, Mode, Precision, Selection};
use super::*;

/// An engine that shows its gradients.
pub(super) trait Probe: Engine {
    fn gradients(&self) -> Vec<NamedTensor>;
}

impl Probe for CandleEngine {
    fn gradients(&self) -> Vec<NamedTensor> {
        self.gradients()
    }
}

impl Probe for CpuEngine {
    fn gradients(&self) -> Vec<NamedTensor> {
        self.gradients()
    }
}

impl<T: Precision> Probe for CudaEngine<T> {
    fn gradients(&self) -> Vec<NamedTensor> {
        self.gradients().unwrap()
    }
}

/// The emulator, which starts ready work in an order of its own; with ANNEAL_TEST_DEVICE=cuda the
/// GPU, which has its own as well.
fn device(order: Order) -> Device {
    #[cfg(feature = "cuda")]
    if std::env::var("ANNEAL_TEST_DEVICE").is_ok_and(|device| device == "cuda") {
        return Device::cuda(0).unwrap();
    }
    Device::emulator(Schedule {
        order,
        seed: 1,
        late: 1,
        wave: 2,
        threads: 1,
    })
}

fn hyper(dropout: f64, gradient_accumulation_steps: u64) -> Hyperparameters {
    Hyperparameters {
        dropout,
        gradient_accumulation_steps,
        weight_decay: 0.1,
        beta1: 0.9,
        beta2: 0.95,
        adam_eps: 1e-8,
        grad_clip: 1.0,
        seed: 7,
        eval_iters: 7,
    }
}

const START: MicroStep = MicroStep { step: 0, micro: 0 };

/// GPT-2 124M.
fn gpt2() -> ModelConfig {
    ModelConfig {
        n_layer: 12,
        n_head: 12,
        n_embd: 768,
        block_size: 1024,
        vocab_size: 50304,
        bias: false,
        gelu: crate::model::Gelu::Erf,
    }
}

#[test]
fn recomputing_saves_the_memory_that_it_promises() {
    let bytes = |recompute| {
        let shape = Shape {
            batch_size: 4,
            block_size: 1024,
            recompute,
        };
        cpu::memory(&gpt2(), false, shape).activations as f64
    };
    let (none, gelu, block) = (
        bytes(Recompute::None),
        bytes(Recompute::Gelu),
        bytes(Recompute::Block),
    );
    assert!(
        gelu < 0.75 * none && block < 0.6 * gelu,
        "{none} {gelu} {block}"
    );
}
