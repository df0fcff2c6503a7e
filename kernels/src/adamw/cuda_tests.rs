//! AdamW on a device: the CPU room's bits, its 16-bit copy, skips, and rounding that is fair.

use half::{bf16, f16};

use super::cuda::{self, Constants, Gradients};
use super::{AdamW, cpu};
use crate::controller::cuda::Controller;
use crate::controller::{Settings, StepState};
use crate::cuda::testing::{assert_same, for_each_device, random};
use crate::cuda::{Device, Float, Stream};
use crate::global_norm;
use crate::philox::{Philox, Stream as RandomStream};

const SETTINGS: Settings = Settings {
    learning_rate: 1e-2,
    min_lr: 1e-2,
    warmup_iters: 0,
    lr_decay_iters: None,
    beta1: 0.9,
    beta2: 0.95,
    weight_decay: 0.1,
    grad_clip: 1.0,
    micro_steps: 1,
    loss_scaling: None,
};

const CONSTANTS: Constants = Constants {
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    decayed: 0,
};

/// Parameters, and how many of them are decayed: a tail, a border within a vector, two blocks.
const SHAPES: [(usize, usize); 5] = [(0, 0), (1, 1), (67, 61), (256, 0), (4101, 2051)];

fn controller(device: &Device) -> Controller {
    let state = StepState {
        step: 0,
        data_offset: 0,
        updates: 0,
        loss_scale: 1.0,
        good_steps: 0,
        reports: 0,
    };
    Controller::new(device, &SETTINGS, &state, 8).unwrap()
}

/// Everything that comes before AdamW in an iteration. Returns the clip factor that it found.
fn prepare(device: &Device, stream: &Stream, controller: &mut Controller, g: &[f32]) -> f32 {
    let blocks = global_norm::cuda::partials_len(g.len());
    let (mut partials, mut nonfinite) =
        (device.alloc(blocks).unwrap(), device.alloc(blocks).unwrap());
    let gradients = device.upload(g).unwrap();
    controller.begin_step(stream).unwrap();
    controller
        .end_micro_step(stream, &device.upload(&[1.0]).unwrap())
        .unwrap();
    global_norm::cuda::partials(stream, &mut partials, &mut nonfinite, &gradients).unwrap();
    controller
        .prepare_update(stream, &partials, &nonfinite)
        .unwrap();
    f32::from_bits(controller.state().download().unwrap()[13])
}

/// Three updates by the CPU room with the clip factors that the device found.
fn on_the_cpu(p: &mut [f32], gradients: &[Vec<f32>], clips: &[f32], decayed: usize) {
    let (mut m, mut v) = (vec![0.0; p.len()], vec![0.0; p.len()]);
    for (update, (g, &gradient_scale)) in (1..).zip(gradients.iter().zip(clips)) {
        let adamw = AdamW {
            learning_rate: SETTINGS.learning_rate,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            update,
            gradient_scale,
        };
        cpu::step(p, g, &mut m, &mut v, decayed, &adamw);
    }
}

fn check<T: Float + PartialEq>() {
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        for (seed, (n, decayed)) in SHAPES.into_iter().enumerate() {
            // Once aligned and once not.
            for first in [0, 1] {
                let len = n + first;
                let seed = seed as u64 * 10;
                let mut expected: Vec<f32> = random(n, 1.0, seed);
                let gradients: Vec<Vec<f32>> = (1..4).map(|i| random(n, 1.0, seed + i)).collect();
                let view = |values: &[f32]| {
                    let mut padded = vec![0.0; first];
                    padded.extend(values);
                    device.upload(&padded).unwrap().slice(first..len)
                };
                let mut p = view(&expected);
                let (mut m, mut v) = (view(&vec![0.0; n]), view(&vec![0.0; n]));
                let mut copy = device.alloc::<T>(len).unwrap().slice(first..len);
                let mut controller = controller(device);
                let constants = Constants {
                    decayed,
                    ..CONSTANTS
                };
                let mut clips = Vec::new();
                for g in &gradients {
                    clips.push(prepare(device, &stream, &mut controller, g));
                    let mut gradients = Gradients {
                        exp_avg: &mut m,
                        exp_avg_sq: &mut v,
                        gradients: &view(g),
                    };
                    let state = controller.state();
                    if size_of::<T>() == 4 {
                        cuda::step(&stream, &mut p, &mut gradients, state, &constants).unwrap();
                    } else {
                        let copy = &mut copy;
                        cuda::step_with_copy(
                            &stream,
                            &mut p,
                            copy,
                            &mut gradients,
                            state,
                            &constants,
                        )
                        .unwrap();
                    }
                    controller.end_step(&stream).unwrap();
                }
                on_the_cpu(&mut expected, &gradients, &clips, decayed);
                let what = format!("{n} parameters, {decayed} decayed, {}", device.name());
                assert_same(&what, &p.download().unwrap(), &expected);
                if size_of::<T>() == 2 {
                    let rounded: Vec<T> = expected
                        .iter()
                        .map(|&x| T::from_f64(f64::from(x)))
                        .collect();
                    assert_same(&what, &copy.download().unwrap(), &rounded);
                }
            }
        }
    });
}

#[test]
fn f32_has_the_bits_of_the_cpu() {
    check::<f32>();
}

#[test]
fn master_weights_have_the_bits_of_the_cpu_and_a_bf16_copy() {
    check::<bf16>();
}

#[test]
fn master_weights_have_the_bits_of_the_cpu_and_an_f16_copy() {
    check::<f16>();
}

#[test]
fn a_skipped_update_changes_nothing() {
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        let before: Vec<f32> = random(300, 1.0, 1);
        let mut controller = controller(device);
        let mut g = before.clone();
        g[200] = f32::INFINITY;
        prepare(device, &stream, &mut controller, &g);
        let mut p = device.upload(&before).unwrap();
        let (mut m, mut v) = (p.clone(), device.upload(&before).unwrap());
        let mut m_own = device.upload(&m.download().unwrap()).unwrap();
        std::mem::swap(&mut m, &mut m_own);
        let mut gradients = Gradients {
            exp_avg: &mut m,
            exp_avg_sq: &mut v,
            gradients: &device.upload(&g).unwrap(),
        };
        cuda::step(
            &stream,
            &mut p,
            &mut gradients,
            controller.state(),
            &CONSTANTS,
        )
        .unwrap();
        for buffer in [&p, &m, &v] {
            assert_same("skipped", &buffer.download().unwrap(), &before);
        }
    });
}

/// A step of a small part of bf16's last place: each element goes down by a whole place or stays,
/// and as many go as make the mean right.
#[test]
fn stochastic_rounding_is_right_on_average_and_repeats() {
    const N: usize = 16_384;
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        let run = |seed: u64| {
            let mut controller = controller(device);
            let g = vec![1.0f32; N];
            prepare(device, &stream, &mut controller, &g);
            let mut p = device.upload(&vec![bf16::from_f32(8.0); N]).unwrap();
            let mut gradients = Gradients {
                exp_avg: &mut device.alloc_zeros(N).unwrap(),
                exp_avg_sq: &mut device.alloc_zeros(N).unwrap(),
                gradients: &device.upload(&g).unwrap(),
            };
            let philox = Philox::new(seed, RandomStream::Rounding);
            let state = controller.state();
            cuda::step_stochastic(&stream, &mut p, &mut gradients, state, &CONSTANTS, &philox)
                .unwrap();
            p.download().unwrap()
        };
        let p = run(1);
        assert_same("again", &run(1), &p);
        assert_ne!(run(2), p);
        // The first update of AdamW is the learning rate, 0.01; below 8 bf16 has steps of 1/32.
        let below = bf16::from_f32(8.0 - 1.0 / 32.0);
        assert!(p.iter().all(|&p| p == bf16::from_f32(8.0) || p == below));
        let share = p.iter().filter(|&&p| p == below).count() as f64 / N as f64;
        // Five standard deviations of N draws of probability 0.32.
        assert!((share - 0.32).abs() < 0.019, "{share}");
    });
}
