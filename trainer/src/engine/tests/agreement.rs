//! The engines against each other on random shapes, and the fused one against itself on other
//! numbers of threads and other ways to save memory.

use proptest::prelude::*;

use super::*;
use crate::model::Gelu;

/// Largest difference allowed between engines, relative to the largest element of a tensor: both
/// compute in fp32, in different orders.
const TOLERANCE: f32 = 2e-4;

#[derive(Clone, Debug)]
struct Case {
    model: ModelConfig,
    batch_size: usize,
    block_size: usize,
    dropout: f64,
    recompute: Recompute,
}

fn case() -> impl Strategy<Value = Case> {
    let heads = (1usize..4, prop_oneof![Just(16usize), Just(20), Just(64)]);
    let shape = (1usize..4, 1usize..40);
    let rest = (
        1usize..3,
        1usize..300,
        any::<bool>(),
        prop_oneof![Just(0.0), Just(0.2)],
    );
    let recompute = prop_oneof![
        Just(Recompute::None),
        Just(Recompute::Gelu),
        Just(Recompute::Block)
    ];
    (heads, shape, rest, recompute).prop_map(|(heads, shape, rest, recompute)| {
        let ((n_head, head_size), (batch_size, block_size)) = (heads, shape);
        let (n_layer, vocab_size, bias, dropout) = rest;
        let model = ModelConfig {
            n_layer,
            n_head,
            n_embd: n_head * head_size,
            block_size: block_size + 3,
            vocab_size,
            bias,
            gelu: Gelu::of(if vocab_size % 2 == 0 { "tanh" } else { "erf" }),
        };
        Case {
            model,
            batch_size,
            block_size,
            dropout,
            recompute,
        }
    })
}

impl Case {
    fn batch(&self, salt: u64) -> Batch {
        let place = [salt as u32, 0, 0];
        let mut random =
            crate::philox::Philox::new(1, crate::philox::Stream::TrainData).sequence(place);
        let elements = self.batch_size * self.block_size;
        let mut ids = || -> Vec<u32> {
            (0..elements)
                .map(|_| random.below(self.model.vocab_size as u64) as u32)
                .collect()
        };
        let (inputs, targets) = (ids(), ids());
        Batch::of_tokens(inputs, targets, self.batch_size, self.block_size)
    }

    fn fused(&self) -> CpuEngine {
        let shape = Shape {
            batch_size: self.batch_size,
            block_size: self.block_size,
            recompute: self.recompute,
        };
        CpuEngine::new(&self.model, hyper(self.dropout, 2), shape)
    }

    fn candle(&self) -> CandleEngine {
        CandleEngine::new(&self.model, hyper(self.dropout, 2)).unwrap()
    }

    /// One accumulated iteration's gradients and, after the update, what it reports.
    fn iteration(&self, engine: &mut dyn Probe, step: u64) -> (Vec<NamedTensor>, UpdateStats) {
        for micro in 0..2 {
            let batch = self.batch(step * 2 + micro);
            engine
                .forward_backward(&batch, MicroStep { step, micro })
                .unwrap();
        }
        let gradients = engine.gradients();
        (gradients, engine.update(1e-3).unwrap())
    }
}

fn assert_close(a: &[NamedTensor], b: &[NamedTensor]) {
    let largest_of_all = |list: &[NamedTensor]| {
        list.iter()
            .flat_map(|tensor| &tensor.data)
            .fold(0f32, |max, x| max.max(x.abs()))
    };
    // A tensor whose gradient is zero but for rounding (the bias of the keys) has no scale of its
    // own.
    let floor = 1e-3 * largest_of_all(b);
    for (a, b) in a.iter().zip(b) {
        assert_eq!((&a.name, &a.shape), (&b.name, &b.shape));
        let largest = largest_of_all(std::slice::from_ref(b)).max(floor);
        for (x, y) in a.data.iter().zip(&b.data) {
            assert!(
                (x - y).abs() <= TOLERANCE * largest,
                "{}: {x} {y} of {largest}",
                a.name
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn gradients_losses_and_masks_are_those_of_candle(case in case()) {
        let (mut fused, mut candle) = (case.fused(), case.candle());
        let evaluated = case.batch(99);
        let losses = (fused.loss(&evaluated).unwrap(), candle.loss(&evaluated).unwrap());
        prop_assert!((losses.0 - losses.1).abs() < 1e-5 * losses.1.max(1.0), "{losses:?}");
        let (gradients, stats) = case.iteration(&mut fused, 0);
        let (expected, expected_stats) = case.iteration(&mut candle, 0);
        assert_close(&gradients, &expected);
        prop_assert!((stats.loss - expected_stats.loss).abs() < 1e-5 * stats.loss.max(1.0));
        let norms = (stats.grad_norm, expected_stats.grad_norm);
        prop_assert!((norms.0 - norms.1).abs() <= 1e-4 * norms.1.max(1e-3), "{norms:?}");
        let prompt = &evaluated.inputs[..case.block_size];
        let (logits, expected) = (fused.logits(prompt).unwrap(), candle.logits(prompt).unwrap());
        for (a, b) in logits.iter().zip(&expected) {
            prop_assert!((a - b).abs() < 1e-4, "{a} {b}");
        }
    }

    #[test]
    fn recomputing_changes_no_bit(case in case()) {
        let run = |recompute| {
            let mut engine = Case { recompute, ..case.clone() }.fused();
            let (gradients, stats) = case.iteration(&mut engine, 3);
            (gradients, stats, engine.state().unwrap())
        };
        let kept = run(Recompute::None);
        prop_assert!(kept == run(Recompute::Gelu), "gelu");
        prop_assert!(kept == run(Recompute::Block), "block");
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bits(case in case()) {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut engine = case.fused();
                case.iteration(&mut engine, 0);
                let (_, stats) = case.iteration(&mut engine, 1);
                (stats, engine.loss(&case.batch(50)).unwrap(), engine.state().unwrap())
            })
        };
        let one = run(1);
        prop_assert!(one == run(2), "two threads");
        prop_assert!(one == run(3), "three threads");
    }

    #[test]
    fn a_state_of_one_engine_goes_on_in_the_other(case in case()) {
        let (mut fused, mut candle) = (case.fused(), case.candle());
        case.iteration(&mut candle, 0);
        fused.load_state(&candle.state().unwrap()).unwrap();
        prop_assert_eq!(fused.state().unwrap(), candle.state().unwrap());
        let (gradients, _) = case.iteration(&mut fused, 1);
        let (expected, _) = case.iteration(&mut candle, 1);
        assert_close(&gradients, &expected);
        candle.load_state(&fused.state().unwrap()).unwrap();
        prop_assert_eq!(fused.state().unwrap(), candle.state().unwrap());
    }
}
