//! What only this engine has: a profile and memory that is known beforehand.

use super::*;
use crate::engine::Engine;

fn engine() -> CpuEngine {
    let model = ModelConfig {
        n_layer: 2,
        n_head: 2,
        n_embd: 32,
        block_size: 16,
        vocab_size: 50,
        bias: true,
        gelu: crate::model::Gelu::Erf,
    };
    let hyper = Hyperparameters {
        dropout: 0.1,
        gradient_accumulation_steps: 1,
        weight_decay: 0.1,
        beta1: 0.9,
        beta2: 0.95,
        adam_eps: 1e-8,
        grad_clip: 1.0,
        seed: 7,
        eval_iters: 7,
    };
    let shape = Shape {
        batch_size: 3,
        block_size: 16,
        recompute: Recompute::Gelu,
    };
    CpuEngine::new(&model, hyper, shape)
}

fn batch() -> Batch {
    Batch::of_tokens((0..48).collect(), (1..49).collect(), 3, 16)
}

#[test]
fn the_profile_names_every_room_once_with_its_work() {
    let mut engine = engine();
    engine
        .forward_backward(&batch(), MicroStep { step: 0, micro: 0 })
        .unwrap();
    engine.update(1e-3).unwrap();
    let profile = engine.take_profile();
    let mut names: Vec<&str> = profile.rooms.iter().map(|room| room.room).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), profile.rooms.len());
    for wanted in [
        "attention backward",
        "matmul backward weight",
        "adamw and gradient norm",
    ] {
        assert!(names.contains(&wanted), "{wanted} is not in {names:?}");
    }
    // Two layers of 12 C² weights and the head, forward, and twice that backward.
    let products = |room: &&super::super::profile::RoomTime| {
        room.room.starts_with("matmul") || room.room.starts_with("head")
    };
    let flops: f64 = profile
        .rooms
        .iter()
        .filter(products)
        .map(|room| room.flops)
        .sum();
    assert_eq!(
        flops,
        3.0 * 2.0 * 48.0 * (2.0 * 12.0 * 32.0 * 32.0 + 50.0 * 32.0)
    );
    assert!(engine.take_profile().rooms.is_empty());
}

#[test]
fn memory_is_what_was_foreseen() {
    let engine = engine();
    let memory = engine.memory().unwrap();
    let held = [
        &engine.parameters,
        &engine.gradients,
        &engine.exp_avg,
        &engine.exp_avg_sq,
    ];
    assert_eq!(
        memory.weights + memory.gradients + memory.moments,
        held.iter().map(|v| v.len() as u64 * 4).sum::<u64>()
    );
    assert_eq!(memory.activations, engine.arena.len() as u64 * 4);
}

#[test]
#[should_panic(expected = "the plan's shape")]
fn a_batch_of_another_shape_is_our_mistake() {
    let batch = Batch {
        batch_size: 1,
        block_size: 48,
        ..batch()
    };
    engine().loss(&batch).ok();
}
