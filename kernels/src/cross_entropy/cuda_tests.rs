//! Cross entropy on a device against f64, its gradient against differences and the CPU room.

use half::{bf16, f16};

use super::cpu;
use super::cuda::{self, Dims};
use super::tests::{inputs, reference};
use crate::controller::cuda::Controller;
use crate::controller::{Settings, StepState};
use crate::cuda::testing::{assert_near, assert_same, for_each_device, widen};
use crate::cuda::{Buffer, Device, Float};

/// Rows, classes, stride: a warp's row with 4 and with 32 elements a lane, one block's row, with
/// and without padding, aligned and not, longer than a block takes at once.
const SHAPES: [(usize, usize, usize); 8] = [
    (1, 1, 1),
    (9, 65, 65),
    (11, 65, 128),
    (3, 128, 136),
    (5, 1000, 1024),
    (2, 1025, 1025),
    (2, 2050, 2056),
    (1, 9001, 9088),
];

struct Case {
    dims: Dims,
    logits: Vec<f64>, // (rows, vocab_size), values of the type
    padded: Vec<f64>, // (rows, stride)
    targets: Vec<u32>,
}

fn case<T: Float>(shape: (usize, usize, usize), seed: u64) -> Case {
    let (rows, vocab_size, stride) = shape;
    let (logits, targets) = inputs(rows, vocab_size, seed);
    let logits: Vec<f64> = logits
        .iter()
        .map(|&x| T::from_f64(f64::from(x)).to_f64())
        .collect();
    let mut padded = Vec::new();
    for row in logits.chunks(vocab_size) {
        padded.extend(row);
        // Padding may hold anything; a logit that large would be seen.
        padded.resize(padded.len() + stride - vocab_size, 77.0);
    }
    Case {
        dims: Dims {
            rows,
            vocab_size,
            stride,
        },
        logits,
        padded,
        targets,
    }
}

impl Case {
    fn upload<T: Float>(&self, device: &Device) -> (Buffer<T>, Buffer<i32>) {
        let padded: Vec<T> = self.padded.iter().map(|&x| T::from_f64(x)).collect();
        let targets: Vec<i32> = self.targets.iter().map(|&t| t as i32).collect();
        (
            device.upload(&padded).unwrap(),
            device.upload(&targets).unwrap(),
        )
    }

    /// scale (softmax - onehot), and zeros in the padding.
    fn dlogits(&self, scale: f64) -> Vec<f64> {
        let Dims {
            vocab_size, stride, ..
        } = self.dims;
        let rows = self.logits.chunks(vocab_size).zip(&self.targets);
        rows.flat_map(|(row, &target)| {
            let highest = row.iter().copied().fold(f64::MIN, f64::max);
            let sum: f64 = row.iter().map(|x| (x - highest).exp()).sum();
            let softmax = row.iter().map(move |x| (x - highest).exp() / sum);
            let mut row: Vec<f64> = softmax.map(|p| scale * p).collect();
            row[target as usize] -= scale;
            row.resize(stride, 0.0);
            row
        })
        .collect()
    }
}

fn check<T: Float>() {
    // Exponentials of logits up to 9, computed in f32 by a function that is off by some 2^-22 and
    // an argument by 13 x 2^-24: 2e-6; gradients are then rounded to T.
    let (loss_tolerance, tolerance) = (4e-6, 4e-6 + T::ROUNDOFF);
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        for (seed, shape) in SHAPES.into_iter().enumerate() {
            let case = case::<T>(shape, seed as u64);
            let what = format!("{shape:?} {} {}", T::NAME, device.name());
            let expected = reference(&case.logits, &case.targets);
            let (mut logits, targets) = case.upload::<T>(device);
            let mut losses = device.alloc(case.dims.rows).unwrap();
            cuda::forward(&stream, &mut losses, &logits, &targets, case.dims).unwrap();
            let forward = losses.download().unwrap();
            assert_near(&what, &forward, &expected, loss_tolerance);

            let mut losses = device.alloc(case.dims.rows).unwrap();
            let (losses_out, scale) = (&mut losses, 0.25);
            cuda::forward_backward(
                &stream,
                &mut logits,
                losses_out,
                &targets,
                None,
                scale,
                case.dims,
            )
            .unwrap();
            assert_near(
                &what,
                &losses.download().unwrap(),
                &expected,
                loss_tolerance,
            );
            let dlogits = logits.download().unwrap();
            assert_near(&what, &dlogits, &case.dlogits(0.25), tolerance);
            for row in dlogits.chunks(case.dims.stride) {
                let padding = &row[case.dims.vocab_size..];
                assert!(padding.iter().all(|x| x.to_f64() == 0.0), "{what}: padding");
            }
        }
    });
}

#[test]
fn f32_matches_f64() {
    check::<f32>();
}

#[test]
fn bf16_matches_f64() {
    check::<bf16>();
}

#[test]
fn f16_matches_f64() {
    check::<f16>();
}

#[test]
fn dlogits_are_the_slope_of_the_kernels_losses() {
    const STEP: f64 = 1.0 / 64.0;
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        let mut case = case::<f32>((1, 40, 40), 3);
        let loss = |case: &Case| {
            let (logits, targets) = case.upload::<f32>(device);
            let mut losses = device.alloc(1).unwrap();
            cuda::forward(&stream, &mut losses, &logits, &targets, case.dims).unwrap();
            f64::from(losses.download().unwrap()[0])
        };
        let mut slopes = Vec::new();
        for i in 0..40 {
            let x = case.padded[i];
            case.padded[i] = x + STEP;
            let up = loss(&case);
            case.padded[i] = x - STEP;
            slopes.push((up - loss(&case)) / (2.0 * STEP));
            case.padded[i] = x;
        }
        let (mut logits, targets) = case.upload::<f32>(device);
        let mut losses = device.alloc(1).unwrap();
        cuda::forward_backward(
            &stream,
            &mut logits,
            &mut losses,
            &targets,
            None,
            1.0,
            case.dims,
        )
        .unwrap();
        // Losses near 10 are rounded by 1e-6; over 2 STEP that is 3e-5.
        assert_near(device.name(), &logits.download().unwrap(), &slopes, 2e-4);
    });
}

#[test]
fn agrees_with_the_cpu_room() {
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        let case = case::<f32>((7, 333, 333), 5);
        let (mut logits, targets) = case.upload::<f32>(device);
        let mut losses = device.alloc(7).unwrap();
        cuda::forward_backward(
            &stream,
            &mut logits,
            &mut losses,
            &targets,
            None,
            0.5,
            case.dims,
        )
        .unwrap();
        let mut expected: Vec<f32> = case.logits.iter().map(|&x| x as f32).collect();
        let mut expected_losses = vec![0.0; 7];
        cpu::forward_backward(&mut expected, &mut expected_losses, &case.targets, 0.5);
        assert_near(
            "dlogits",
            &logits.download().unwrap(),
            &widen(&expected),
            4e-6,
        );
        let losses = losses.download().unwrap();
        assert_near("losses", &losses, &widen(&expected_losses), 4e-6);
    });
}

/// A row that does not fit into shared memory is read twice: the same bits either way. Two types
/// of one row length are on the two sides of the limit.
#[test]
fn rows_beyond_shared_memory() {
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        let shape = (1, 26_001, 26_008);
        let case = case::<f32>(shape, 8);
        let bytes = case.dims.vocab_size * size_of::<f32>();
        assert!(bytes > device.properties().shared_bytes_max as usize);
        let (mut logits, targets) = case.upload::<f32>(device);
        let mut losses = device.alloc(1).unwrap();
        cuda::forward_backward(
            &stream,
            &mut logits,
            &mut losses,
            &targets,
            None,
            1.0,
            case.dims,
        )
        .unwrap();
        let expected = case.dlogits(1.0);
        assert_near(device.name(), &logits.download().unwrap(), &expected, 4e-6);
    });
}

#[test]
fn huge_logits_and_nan() {
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        let logits = [1e4f32, -1e4, 9.99e3, -3e38, 0.0, f32::NAN, 1.0, 2.0];
        let dims = Dims {
            rows: 2,
            vocab_size: 4,
            stride: 4,
        };
        let mut losses = device.alloc(2).unwrap();
        let (logits, targets) = (device.upload(&logits), device.upload(&[2, 0]));
        cuda::forward(
            &stream,
            &mut losses,
            &logits.unwrap(),
            &targets.unwrap(),
            dims,
        )
        .unwrap();
        let losses = losses.download().unwrap();
        let expected = [(1.0 + (-10.0f64).exp()).ln() + 10.0];
        assert_near("huge", &losses[..1], &expected, 1e-6);
        assert!(losses[1].is_nan());
    });
}

#[test]
fn the_loss_scale_multiplies_the_gradient_and_not_the_loss() {
    let settings = Settings {
        learning_rate: 1e-3,
        min_lr: 1e-3,
        warmup_iters: 0,
        lr_decay_iters: None,
        beta1: 0.9,
        beta2: 0.99,
        weight_decay: 0.0,
        grad_clip: 0.0,
        micro_steps: 1,
        loss_scaling: None,
    };
    let state = |loss_scale| StepState {
        step: 0,
        data_offset: 0,
        updates: 0,
        loss_scale,
        good_steps: 0,
        reports: 0,
    };
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        let case = case::<f16>((3, 70, 72), 6);
        let run = |scale: f32, loss_scale: f32| {
            let controller = Controller::new(device, &settings, &state(loss_scale), 4).unwrap();
            let (mut logits, targets) = case.upload::<f16>(device);
            let mut losses = device.alloc(3).unwrap();
            let state = Some(controller.state());
            cuda::forward_backward(
                &stream,
                &mut logits,
                &mut losses,
                &targets,
                state,
                scale,
                case.dims,
            )
            .unwrap();
            (logits.download().unwrap(), losses.download().unwrap())
        };
        let (scaled, plain) = (run(0.25, 1024.0), run(256.0, 1.0));
        assert_same("dlogits", &scaled.0, &plain.0);
        assert_same("losses", &scaled.1, &plain.1);
    });
}
