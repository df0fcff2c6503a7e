//! The contract of [`Engine`]: what the golden cases do not reach, for each engine.

use super::*;

fn model() -> ModelConfig {
    ModelConfig {
        n_layer: 2,
        n_head: 2,
        n_embd: 16,
        block_size: 8,
        vocab_size: 11,
        bias: true,
        gelu: crate::model::Gelu::Erf,
    }
}

/// Makes an engine with these hyper-parameters.
type Make = fn(f64, u64) -> Box<dyn Probe>;

fn candle(dropout: f64, gradient_accumulation_steps: u64) -> Box<dyn Probe> {
    let hyper = hyper(dropout, gradient_accumulation_steps);
    Box::new(CandleEngine::new(&model(), hyper).unwrap())
}

fn fused(dropout: f64, gradient_accumulation_steps: u64) -> Box<dyn Probe> {
    let hyper = hyper(dropout, gradient_accumulation_steps);
    let shape = Shape {
        batch_size: 2,
        block_size: 8,
        recompute: Recompute::Gelu,
    };
    Box::new(CpuEngine::new(&model(), hyper, shape))
}

fn cuda(dropout: f64, gradient_accumulation_steps: u64) -> Box<dyn Probe> {
    let hyper = hyper(dropout, gradient_accumulation_steps);
    let shape = Shape {
        batch_size: 2,
        block_size: 8,
        recompute: Recompute::Gelu,
    };
    let device = super::device(Order::Random);
    let engine = CudaEngine::<f32>::new(
        &device,
        &model(),
        hyper,
        shape,
        Launch::Graphs,
        &Selection::off(),
    );
    Box::new(engine.unwrap())
}

/// Runs a test on every engine.
macro_rules! on_all {
    ($($test:ident)*) => {
        mod on_candle {
            $(#[test] fn $test() { super::$test(super::candle); })*
        }

        mod on_fused {
            $(#[test] fn $test() { super::$test(super::fused); })*
        }

        mod on_cuda {
            $(#[test] fn $test() { super::$test(super::cuda); })*
        }
    };
}

on_all! {
    every_parameter_gets_a_gradient
    accumulated_gradients_are_the_mean_over_the_micro_steps
    dropout_acts_in_training_and_never_in_evaluation
    the_cache_changes_nothing_even_where_the_window_slides
    the_cache_forgets_when_the_parameters_change
    a_gradient_that_is_not_finite_is_reported_and_discarded
    a_state_that_does_not_fit_is_refused_by_name
    a_snapshot_is_of_its_moment_though_training_goes_on
    the_mean_loss_is_that_of_the_batches
    the_measured_peak_is_plausible
}

fn batch(salt: u32) -> Batch {
    let token = |i: u32| (i * i * 3 + i * salt + salt) % 11;
    let (inputs, targets) = ((0..16).map(token), (1..17).map(token));
    Batch::of_tokens(inputs.collect(), targets.collect(), 2, 8)
}

fn every_parameter_gets_a_gradient(make: Make) {
    let mut engine = make(0.1, 1);
    engine.forward_backward(&batch(1), START).unwrap();
    for gradient in engine.gradients() {
        assert!(gradient.data.iter().any(|&g| g != 0.0), "{}", gradient.name);
    }
}

fn accumulated_gradients_are_the_mean_over_the_micro_steps(make: Make) {
    let mut both = make(0.0, 2);
    both.forward_backward(&batch(1), START).unwrap();
    both.forward_backward(&batch(2), MicroStep { step: 0, micro: 1 })
        .unwrap();
    let single = |salt| {
        let mut engine = make(0.0, 1);
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

fn dropout_acts_in_training_and_never_in_evaluation(make: Make) {
    let gradient = |dropout, step| {
        let mut engine = make(dropout, 1);
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

fn the_cache_changes_nothing_even_where_the_window_slides(make: Make) {
    let text: Vec<u32> = (0..20).map(|i| (i * 7 + i * i) % 11).collect();
    let mut cached = make(0.0, 1);
    for end in 1..=text.len() {
        let window = &text[end.saturating_sub(8)..end];
        let step_by_step = cached.logits(window).unwrap();
        let at_once = make(0.0, 1).logits(window).unwrap();
        for (a, b) in step_by_step.iter().zip(&at_once) {
            assert!((a - b).abs() < 1e-5, "{end}: {a} {b}");
        }
    }
    // Another sequence of a fitting length must not find the first one's keys.
    let other = [3, 3, 3, 3, 3, 3, 3, 3];
    assert_eq!(
        cached.logits(&other).unwrap(),
        make(0.0, 1).logits(&other).unwrap()
    );
}

fn the_cache_forgets_when_the_parameters_change(make: Make) {
    let mut engine = make(0.0, 1);
    let before = engine.logits(&[1, 2, 3]).unwrap();
    engine.forward_backward(&batch(1), START).unwrap();
    engine.update(1e-1).unwrap();
    let grown = engine.logits(&[1, 2, 3, 4]).unwrap();
    let mut fresh = make(0.0, 1);
    fresh.load_state(&engine.state().unwrap()).unwrap();
    for (a, b) in grown.iter().zip(fresh.logits(&[1, 2, 3, 4]).unwrap()) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
    assert_ne!(before, fresh.logits(&[1, 2, 3]).unwrap());
}

fn a_gradient_that_is_not_finite_is_reported_and_discarded(make: Make) {
    let mut engine = make(0.0, 1);
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

fn a_state_that_does_not_fit_is_refused_by_name(make: Make) {
    let mut engine = make(0.0, 1);
    let good = engine.state().unwrap();
    let refusal = |change: &dyn Fn(&mut EngineState), engine: &mut dyn Probe| {
        let mut state = good.clone();
        change(&mut state);
        engine.load_state(&state).unwrap_err().to_string()
    };
    let missing = refusal(&|s| drop(s.exp_avg.remove(1)), engine.as_mut());
    assert!(
        missing.contains("first moment of transformer.wpe.weight is missing"),
        "{missing}"
    );
    let shape = refusal(&|s| s.parameters[0].shape = vec![16, 11], engine.as_mut());
    assert!(
        shape.contains("wte.weight: expected shape [11, 16], got [16, 11]"),
        "{shape}"
    );
    let extra = refusal(
        &|s| s.parameters[2].name = "lm_head.bias".to_owned(),
        engine.as_mut(),
    );
    assert!(extra.contains("lm_head.bias"), "{extra}");
    assert_eq!(engine.state().unwrap(), good);
}

fn a_snapshot_is_of_its_moment_though_training_goes_on(make: Make) {
    let mut engine = make(0.0, 1);
    let mut snapshots = Vec::new();
    for step in 0..3 {
        let at = MicroStep { step, micro: 0 };
        engine.forward_backward(&batch(1), at).unwrap();
        engine.update(1e-2).unwrap();
        let expected = engine.state().unwrap();
        let pending = engine.snapshot().unwrap();
        if step == 1 {
            // One that nobody wants holds nothing up.
            continue;
        }
        let waiting = std::thread::spawn(move || pending().unwrap());
        snapshots.push((expected, waiting));
    }
    for (expected, waiting) in snapshots {
        assert!(waiting.join().unwrap() == expected);
    }
}

fn the_mean_loss_is_that_of_the_batches(make: Make) {
    let mut engine = make(0.1, 1);
    let each = (0..7).map(|salt| engine.loss(&batch(salt)).unwrap());
    let expected = each.sum::<f64>() / 7.0;
    let mut batches = (0..7).map(batch);
    let mean = engine.mean_loss(&mut batches, &|| false).unwrap();
    assert_eq!(mean, Some(expected));
    let stopped = engine.mean_loss(&mut (0..7).map(batch), &|| true).unwrap();
    assert_eq!(stopped, None);
    assert_eq!(
        engine.loss(&batch(3)).unwrap(),
        make(0.1, 1).loss(&batch(3)).unwrap()
    );
}

fn the_measured_peak_is_plausible(make: Make) {
    let peak = make(0.0, 1).peak_flops().unwrap().unwrap();
    assert!((1e8..1e15).contains(&peak), "{peak}");
}
