//! Batches on a device: the windows that the trainer's loader draws.

use super::cuda::{self, TokenId};
use crate::controller::cuda::Controller;
use crate::controller::{Settings, StepState};
use crate::cuda::Device;
use crate::cuda::testing::for_each_device;
use crate::philox::{Philox, Stream};

const SETTINGS: Settings = Settings {
    learning_rate: 1e-3,
    min_lr: 1e-3,
    warmup_iters: 0,
    lr_decay_iters: None,
    beta1: 0.9,
    beta2: 0.95,
    weight_decay: 0.0,
    grad_clip: 0.0,
    micro_steps: 2,
    loss_scaling: None,
};

/// A controller at `step`, moved on by `data_offset`.
fn controller(device: &Device, step: u64, data_offset: u64) -> Controller {
    let state = StepState {
        step,
        data_offset,
        updates: 0,
        loss_scale: 1.0,
        good_steps: 0,
        reports: 0,
    };
    Controller::new(device, &SETTINGS, &state, 1).unwrap()
}

#[test]
fn random_starts_are_the_loaders() {
    let philox = Philox::new(1337, Stream::TrainData);
    // The second bound needs all 64 bits of the draw.
    for (len, time, batch) in [(1_003_854, 256, 9), (usize::MAX / 3, 1, 300)] {
        for_each_device(|device| {
            let stream = device.stream().unwrap();
            let (step, data_offset) = ((1u64 << 32) - 2, 7);
            let mut controller = controller(device, step, data_offset);
            controller.begin_step(&stream).unwrap();
            for micro in 0..2 {
                let mut starts = device.alloc::<u64>(batch).unwrap();
                let state = controller.state();
                cuda::random_starts(&stream, &mut starts, state, &philox, len, time).unwrap();
                let drawn_at = step + data_offset;
                let place = [drawn_at as u32, (drawn_at >> 32) as u32, micro];
                let mut draws = philox.sequence(place);
                let windows = (len - time) as u64;
                let expected: Vec<u64> = (0..batch).map(|_| draws.below(windows)).collect();
                assert_eq!(starts.download().unwrap(), expected, "micro-step {micro}");
                let losses = device.upload(&[1.0]).unwrap();
                controller.end_micro_step(&stream, &losses).unwrap();
            }
        });
    }
}

fn check_gather<Id: TokenId>(tokens: &[Id], widen: impl Fn(Id) -> i32) {
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        let dataset = device.upload(tokens).unwrap();
        for (batch, time) in [(1, 1), (3, 7), (5, 300)] {
            let last = (tokens.len() - time - 1) as u64;
            // Spread over all windows, the last one included.
            let starts: Vec<u64> = (1..=batch).map(|b| last * b / batch).collect();
            let n = starts.len() * time;
            let [mut inputs, mut targets] = [0; 2].map(|_| device.alloc(n).unwrap());
            let starts_device = device.upload(&starts).unwrap();
            cuda::gather(&stream, &mut inputs, &mut targets, &dataset, &starts_device).unwrap();
            let expected = |moved: usize| -> Vec<i32> {
                let window = |&start: &u64| {
                    let start = start as usize + moved;
                    tokens[start..start + time].iter().map(|&id| widen(id))
                };
                starts.iter().flat_map(window).collect()
            };
            assert_eq!(inputs.download().unwrap(), expected(0));
            assert_eq!(targets.download().unwrap(), expected(1));
        }
    });
}

#[test]
fn gathers_windows_and_their_targets() {
    let wide: Vec<u32> = (0..1001u32)
        .map(|i| i.wrapping_mul(2_654_435_761) >> 8)
        .collect();
    check_gather(&wide, |id| id as i32);
    let narrow: Vec<u16> = wide.iter().map(|&id| id as u16).collect();
    check_gather(&narrow, i32::from);
}
