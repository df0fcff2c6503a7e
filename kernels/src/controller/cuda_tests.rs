//! The step controller against the host's arithmetic: schedule, norm, skips, loss scale, reports.

use super::cuda::Controller;
use super::{LossScaling, Report, Settings, StepState};
use crate::cuda::testing::{for_each_device, random};
use crate::cuda::{Device, Stream};
use crate::global_norm::{self, clip_factor};

const SETTINGS: Settings = Settings {
    learning_rate: 6e-4,
    min_lr: 6e-5,
    warmup_iters: 3,
    lr_decay_iters: Some(10),
    beta1: 0.9,
    beta2: 0.95,
    weight_decay: 0.1,
    grad_clip: 1.0,
    micro_steps: 2,
    loss_scaling: None,
};

const STATE: StepState = StepState {
    step: 0,
    data_offset: 0,
    updates: 0,
    loss_scale: 1.0,
    good_steps: 0,
    reports: 0,
};

/// nanoGPT's `get_lr`.
fn learning_rate(settings: &Settings, step: u64) -> f64 {
    let Some(end) = settings.lr_decay_iters else {
        return settings.learning_rate;
    };
    let warmup = settings.warmup_iters;
    if step < warmup {
        return settings.learning_rate * (step + 1) as f64 / (warmup + 1) as f64;
    }
    if step > end {
        return settings.min_lr;
    }
    let ratio = (step - warmup) as f64 / (end - warmup) as f64;
    let weight = 0.5 * (1.0 + (std::f64::consts::PI * ratio).cos());
    settings.min_lr + weight * (settings.learning_rate - settings.min_lr)
}

/// One iteration with these losses of two micro-steps and these gradients.
fn iteration(
    device: &Device,
    stream: &Stream,
    controller: &mut Controller,
    losses: [&[f32]; 2],
    gradients: &[f32],
) {
    controller.begin_step(stream).unwrap();
    for losses in losses {
        let losses = device.upload(losses).unwrap();
        controller.end_micro_step(stream, &losses).unwrap();
    }
    let n = global_norm::cuda::partials_len(gradients.len());
    let (mut partials, mut nonfinite) = (device.alloc(n).unwrap(), device.alloc(n).unwrap());
    let gradients = device.upload(gradients).unwrap();
    global_norm::cuda::partials(stream, &mut partials, &mut nonfinite, &gradients).unwrap();
    controller
        .prepare_update(stream, &partials, &nonfinite)
        .unwrap();
    controller.end_step(stream).unwrap();
}

/// Words of the state in device memory, by their place in step_state.cuh.
fn word(controller: &Controller, at: usize) -> f32 {
    f32::from_bits(controller.state().download().unwrap()[at])
}

#[test]
fn schedule_and_factors_are_the_hosts() {
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        let mut controller = Controller::new(device, &SETTINGS, &STATE, 4).unwrap();
        let gradients: Vec<f32> = random(1001, 1.0, 9);
        let sum: f64 = gradients.iter().map(|&g| f64::from(g).powi(2)).sum();
        for step in 0..13u64 {
            iteration(
                device,
                &stream,
                &mut controller,
                [&[1.0, 2.0, 3.0], &[4.0]],
                &gradients,
            );
            let update = i32::try_from(step + 1).unwrap();
            let rate = learning_rate(&SETTINGS, step);
            let expected = [
                // Four squares are added in f32 before they become f64.
                (12, sum.sqrt(), 1e-7),
                (13, f64::from(clip_factor(sum.sqrt(), 1.0)), 2e-7),
                (14, rate, 6e-8),
                (15, 1.0 - 0.1 * rate, 6e-8),
                (16, rate / (1.0 - 0.9f64.powi(update)), 1e-7),
                (17, (1.0 - 0.95f64.powi(update)).sqrt(), 1e-7),
            ];
            for (at, expected, tolerance) in expected {
                let actual = f64::from(word(&controller, at));
                let error = (actual / expected - 1.0).abs();
                assert!(
                    error <= tolerance,
                    "step {step}, word {at}: expected {expected:e}, got {actual:e}"
                );
            }
        }
        let state = controller.download().unwrap();
        assert_eq!((state.step, state.updates, state.reports), (13, 13, 13));
        // The ring holds four; who asks for more gets those.
        let reports = controller.reports(5).unwrap();
        let steps: Vec<u64> = reports.iter().map(|report| report.step).collect();
        assert_eq!(steps, [9, 10, 11, 12]);
        // (2 + 4) / 2: the mean of the micro-steps' means.
        assert!(reports.iter().all(|report| report.loss == 3.0));
        assert_eq!(controller.reports(12).unwrap().len(), 1);
    });
}

#[test]
fn random_words_follow_step_micro_step_and_rollback() {
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        let state = StepState {
            step: (1 << 32) - 1,
            data_offset: 5,
            ..STATE
        };
        let mut controller = Controller::new(device, &SETTINGS, &state, 1).unwrap();
        let losses = device.upload(&[1.0]).unwrap();
        controller.begin_step(&stream).unwrap();
        assert_eq!(controller.at().download().unwrap(), [4, 1]);
        controller.end_micro_step(&stream, &losses).unwrap();
        assert_eq!(controller.at().download().unwrap(), [4, 1 | 1 << 16]);
        controller.end_step(&stream).unwrap();
        controller.begin_step(&stream).unwrap();
        assert_eq!(controller.at().download().unwrap(), [5, 1]);
        controller.set(&STATE).unwrap();
        controller.begin_step(&stream).unwrap();
        assert_eq!(controller.at().download().unwrap(), [0, 0]);
    });
}

#[test]
fn what_is_not_finite_is_skipped_and_counted() {
    let good: Vec<f32> = random(5000, 1.0, 2);
    let mut overflowed = good.clone();
    overflowed[4999] = f32::INFINITY;
    overflowed[17] = f32::NAN;
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        let mut controller = Controller::new(device, &SETTINGS, &STATE, 8).unwrap();
        let mut run = |losses: [&[f32]; 2], gradients: &[f32]| {
            iteration(device, &stream, &mut controller, losses, gradients);
            let report = controller.reports(0).unwrap().pop().unwrap();
            let state = controller.download().unwrap();
            assert_eq!(
                controller.state().download().unwrap()[11],
                u32::from(report.skipped)
            );
            (report.skipped, report.nonfinite, state.step, state.updates)
        };
        assert_eq!(run([&[1.0], &[1.0]], &good), (false, 0, 1, 1));
        assert_eq!(run([&[1.0], &[1.0]], &overflowed), (true, 2, 2, 1));
        assert_eq!(run([&[f32::NAN], &[1.0]], &good), (true, 0, 3, 1));
        assert_eq!(run([&[1.0], &[1.0]], &good), (false, 0, 4, 2));
    });
}

#[test]
fn the_loss_scale_halves_doubles_and_cancels_out() {
    let settings = Settings {
        micro_steps: 2,
        loss_scaling: Some(LossScaling {
            growth_steps: 3,
            max: 4096.0,
        }),
        ..SETTINGS
    };
    let state = StepState {
        loss_scale: 1024.0,
        ..STATE
    };
    let good: Vec<f32> = random(100, 1024.0, 2);
    let mut overflowed = good.clone();
    overflowed[3] = f32::NEG_INFINITY;
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        let mut controller = Controller::new(device, &settings, &state, 32).unwrap();
        let mut run = |gradients: &[f32]| -> f32 {
            let losses: [&[f32]; 2] = [&[1.0], &[1.0]];
            iteration(device, &stream, &mut controller, losses, gradients);
            controller.download().unwrap().loss_scale
        };
        assert_eq!(run(&overflowed), 512.0);
        assert_eq!([run(&good), run(&good), run(&good)], [512.0, 512.0, 1024.0]);
        assert_eq!([run(&good), run(&overflowed)], [1024.0, 512.0]);
        let grown: Vec<f32> = (0..12).map(|_| run(&good)).collect();
        assert_eq!(grown[11], 4096.0);
        assert!(grown.iter().all(|&scale| scale <= 4096.0));
        let norm = good
            .iter()
            .map(|&g| f64::from(g).powi(2))
            .sum::<f64>()
            .sqrt();
        let Report {
            loss_scale,
            grad_norm,
            ..
        } = controller.reports(0).unwrap()[0];
        assert_eq!(loss_scale, 1024.0);
        assert!(!grad_norm.is_finite());
        let Report {
            loss_scale,
            grad_norm,
            ..
        } = controller.reports(1).unwrap()[0];
        assert_eq!(loss_scale, 512.0);
        assert!((f64::from(grad_norm) / (norm / 512.0) - 1.0).abs() < 2e-7);
    });
}

#[test]
fn a_captured_iteration_replays_with_other_steps() {
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        let mut controller = Controller::new(device, &SETTINGS, &STATE, 8).unwrap();
        let losses = device.upload(&[2.0, 4.0]).unwrap();
        let gradients = device.upload(&random::<f32>(300, 1.0, 1)).unwrap();
        let (mut partials, mut nonfinite) = (device.alloc(1).unwrap(), device.alloc(1).unwrap());
        let mut iteration = |stream: &_, controller: &mut Controller| {
            controller.begin_step(stream)?;
            for _ in 0..2 {
                controller.end_micro_step(stream, &losses)?;
            }
            global_norm::cuda::partials(stream, &mut partials, &mut nonfinite, &gradients)?;
            controller.prepare_update(stream, &partials, &nonfinite)?;
            controller.end_step(stream)
        };
        // What is recorded has run before.
        let mut other = Controller::new(device, &SETTINGS, &STATE, 8).unwrap();
        iteration(&stream, &mut other).unwrap();
        let graph = stream.capture(|stream| iteration(stream, &mut controller));
        let graph = graph.unwrap();
        for _ in 0..5 {
            graph.launch(&stream).unwrap();
        }
        let rates: Vec<f32> = controller
            .reports(0)
            .unwrap()
            .iter()
            .map(|report| report.learning_rate)
            .collect();
        let expected: Vec<f32> = (0..5)
            .map(|step| learning_rate(&SETTINGS, step) as f32)
            .collect();
        assert_eq!(rates, expected);
    });
}
