//! What the golden cases do not reach: dropout, the key-value cache, bad gradients and bad states.

use super::*;

fn model() -> ModelConfig {
    ModelConfig {
        n_layer: 2,
        n_head: 2,
        n_embd: 16,
        block_size: 8,
        vocab_size: 11,
        bias: true,
    }
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
    }
}

fn engine(dropout: f64, gradient_accumulation_steps: u64) -> CandleEngine {
    CandleEngine::new(&model(), hyper(dropout, gradient_accumulation_steps)).unwrap()
}

fn batch(salt: u32) -> Batch {
    let token = |i: u32| (i * i * 3 + i * salt + salt) % 11;
    Batch {
        inputs: (0..16).map(token).collect(),
        targets: (1..17).map(token).collect(),
        batch_size: 2,
        block_size: 8,
    }
}

const START: MicroStep = MicroStep { step: 0, micro: 0 };

#[test]
fn every_parameter_gets_a_gradient() {
    let mut engine = engine(0.1, 1);
    engine.forward_backward(&batch(1), START).unwrap();
    for gradient in engine.gradients() {
        assert!(gradient.data.iter().any(|&g| g != 0.0), "{}", gradient.name);
    }
}

#[test]
fn accumulated_gradients_are_the_mean_over_the_micro_steps() {
    let mut both = engine(0.0, 2);
    both.forward_backward(&batch(1), START).unwrap();
    both.forward_backward(&batch(2), MicroStep { step: 0, micro: 1 })
        .unwrap();
    let single = |salt| {
        let mut engine = engine(0.0, 1);
        engine.forward_backward(&batch(salt), START).unwrap();
        let loss = engine.loss(&batch(salt)).unwrap();
        (engine.gradients(), loss)
    };
    let ((first, loss1), (second, loss2)) = (single(1), single(2));
    for ((sum, a), b) in both.gradients().iter().zip(&first).zip(&second) {
        for ((sum, a), b) in sum.data.iter().zip(&a.data).zip(&b.data) {
            assert!((sum - (a + b) / 2.0).abs() < 1e-6, "{sum} {a} {b}");
        }
    }
    let stats = both.update(1e-3).unwrap();
    assert!((stats.loss - (loss1 + loss2) / 2.0).abs() < 1e-6);
}

#[test]
fn dropout_keeps_the_right_share_and_follows_from_its_place_alone() {
    let philox = Philox::new(3, Stream::Dropout);
    let mask = |step, micro, place| {
        Dropout {
            p: 0.2,
            philox: &philox,
            at: MicroStep { step, micro },
        }
        .mask(100_001, place)
    };
    let first = mask(5, 1, 2);
    let kept = first.iter().filter(|&&x| x > 0.0).count() as f64 / first.len() as f64;
    assert!((kept - 0.8).abs() < 0.006, "{kept}");
    assert!(first.iter().all(|&x| x == 0.0 || x == 1.25));
    assert_eq!(first, mask(5, 1, 2));
    for other in [
        mask(6, 1, 2),
        mask(5, 0, 2),
        mask(5, 1, 3),
        mask(5 + (1 << 32), 1, 2),
    ] {
        assert_ne!(first, other);
    }
}

#[test]
fn dropout_acts_in_training_and_never_in_evaluation() {
    let gradient = |dropout, step| {
        let mut engine = engine(dropout, 1);
        engine
            .forward_backward(&batch(1), MicroStep { step, micro: 0 })
            .unwrap();
        (
            engine.gradients()[0].data.clone(),
            engine.loss(&batch(1)).unwrap(),
        )
    };
    let (dropped, loss) = gradient(0.5, 0);
    assert_eq!(gradient(0.5, 0).0, dropped);
    assert_ne!(gradient(0.5, 1).0, dropped);
    let (plain, plain_loss) = gradient(0.0, 0);
    assert_ne!(plain, dropped);
    assert_eq!(plain_loss, loss);
}

#[test]
fn the_cache_changes_nothing_even_where_the_window_slides() {
    let text: Vec<u32> = (0..20).map(|i| (i * 7 + i * i) % 11).collect();
    let mut cached = engine(0.0, 1);
    for end in 1..=text.len() {
        let window = &text[end.saturating_sub(8)..end];
        let step_by_step = cached.logits(window).unwrap();
        let at_once = engine(0.0, 1).logits(window).unwrap();
        for (a, b) in step_by_step.iter().zip(&at_once) {
            assert!((a - b).abs() < 1e-5, "{end}: {a} {b}");
        }
    }
    // Another sequence of a fitting length must not find the first one's keys.
    let other = [3, 3, 3, 3, 3, 3, 3, 3];
    assert_eq!(
        cached.logits(&other).unwrap(),
        engine(0.0, 1).logits(&other).unwrap()
    );
}

#[test]
fn the_cache_forgets_when_the_parameters_change() {
    let mut engine = engine(0.0, 1);
    let before = engine.logits(&[1, 2, 3]).unwrap();
    engine.forward_backward(&batch(1), START).unwrap();
    engine.update(1e-1).unwrap();
    let grown = engine.logits(&[1, 2, 3, 4]).unwrap();
    let mut fresh = self::engine(0.0, 1);
    fresh.load_state(&engine.state().unwrap()).unwrap();
    assert_eq!(grown, fresh.logits(&[1, 2, 3, 4]).unwrap());
    assert_ne!(before, fresh.logits(&[1, 2, 3]).unwrap());
}

#[test]
fn a_gradient_that_is_not_finite_is_reported_and_discarded() {
    let mut engine = engine(0.0, 1);
    let healthy = engine.state().unwrap();
    let mut sick = healthy.clone();
    sick.parameters[0].data[5] = f32::NAN;
    engine.load_state(&sick).unwrap();
    engine.forward_backward(&batch(1), START).unwrap();
    let stats = engine.update(1e-3).unwrap();
    assert!(!stats.loss.is_finite() && !stats.grad_norm.is_finite());
    let after = engine.state().unwrap();
    assert_eq!((after.updates, &after.exp_avg), (0, &sick.exp_avg));

    // Nothing of it stays behind.
    engine.load_state(&healthy).unwrap();
    engine.forward_backward(&batch(1), START).unwrap();
    assert!(engine.update(1e-3).unwrap().grad_norm.is_finite());
}

#[test]
fn a_state_that_does_not_fit_is_refused_by_name() {
    let mut engine = engine(0.0, 1);
    let good = engine.state().unwrap();
    let refusal = |change: &dyn Fn(&mut EngineState), engine: &mut CandleEngine| {
        let mut state = good.clone();
        change(&mut state);
        engine.load_state(&state).unwrap_err().to_string()
    };
    let missing = refusal(&|s| drop(s.exp_avg.remove(1)), &mut engine);
    assert!(
        missing.contains("first moment of transformer.wpe.weight is missing"),
        "{missing}"
    );
    let shape = refusal(&|s| s.parameters[0].shape = vec![16, 11], &mut engine);
    assert!(
        shape.contains("wte.weight: expected shape [11, 16], got [16, 11]"),
        "{shape}"
    );
    let extra = refusal(
        &|s| s.parameters[2].name = "lm_head.bias".to_owned(),
        &mut engine,
    );
    assert!(extra.contains("lm_head.bias"), "{extra}");
    assert_eq!(engine.state().unwrap(), good);
}

#[test]
fn the_measured_peak_is_plausible() {
    let peak = engine(0.0, 1).peak_flops().unwrap().unwrap();
    assert!((1e8..1e15).contains(&peak), "{peak}");
}
