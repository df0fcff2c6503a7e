//! Embeddings on a device against plain loops and the CPU room, and with the first LayerNorm.

use half::{bf16, f16};

use super::cuda::{self, Dims, Scratch, Tables};
use super::{cpu, tests};
use crate::cuda::testing::{assert_near, assert_same, for_each_device, random};
use crate::cuda::{Device, Float};
use crate::dropout::Dropout;
use crate::layernorm;
use crate::layernorm::cuda::{Normed, Parameters};

/// B, T, C, V: one row; odd channels; one token only, over several pieces; a vocabulary of two
/// bytes; more rows than a tile of the sort; a wide row.
const SHAPES: [[usize; 4]; 7] = [
    [1, 1, 8, 1],
    [3, 7, 33, 65],
    [4, 50, 16, 1],
    [5, 20, 24, 300],
    [2, 700, 8, 40],
    [3, 70, 8, 70_000],
    [2, 3, 264, 5],
];

fn scratch(device: &Device, rows: usize, c: usize) -> Scratch {
    Scratch {
        sorted: [0; 2].map(|_| device.alloc(rows).unwrap()),
        counts: device.alloc(cuda::counts_len(rows)).unwrap(),
        partials: device.alloc(cuda::partials_len(rows, c)).unwrap(),
    }
}

fn narrow<T: Float>(x: &[f32]) -> Vec<T> {
    x.iter().map(|&x| T::from_f64(x.into())).collect()
}

fn widen<T: Float>(x: &[T]) -> Vec<f32> {
    x.iter().map(|x| x.to_f64() as f32).collect()
}

/// The tables' gradients in f64: each row of `dout`, after dropout, added to its token's and its
/// position's row of `before`: wte, wpe.
fn plain_sums(
    before: [&[f32]; 2],
    mut dout: Vec<f32>,
    tokens: &[u32],
    t: usize,
    dropout: Option<&Dropout>,
) -> [Vec<f64>; 2] {
    if let Some(dropout) = dropout {
        crate::dropout::cpu::forward(&mut dout, dropout);
    }
    let mut sums = before.map(|before| before.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
    let c = dout.len() / tokens.len();
    for (i, &x) in dout.iter().enumerate() {
        sums[0][tokens[i / c] as usize * c + i % c] += f64::from(x);
        sums[1][i / c % t * c + i % c] += f64::from(x);
    }
    sums
}

fn check<T: Float + PartialEq>() {
    let dropout = tests::dropout(0.2);
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        let at = device.upload(&dropout.at).unwrap();
        for [b, t, c, v] in SHAPES {
            let what = format!("{:?} {} {}", [b, t, c, v], T::NAME, device.name());
            let (rows, start) = (b * t, 2);
            let tokens = tests::tokens(rows, v, 3);
            let tokens_i32: Vec<i32> = tokens.iter().map(|&token| token as i32).collect();
            let tokens_device = device.upload(&tokens_i32).unwrap();
            let (wte, wpe) = (
                random::<T>(v * c, 1.0, 1),
                random::<T>((start + t) * c, 1.0, 2),
            );
            let (wte_device, wpe_device) =
                (device.upload(&wte).unwrap(), device.upload(&wpe).unwrap());
            let tables = Tables {
                wte: &wte_device,
                wpe: &wpe_device,
            };
            let mut dims = Dims {
                batch: b,
                time: t,
                channels: c,
                start,
            };
            let dout = random::<T>(rows * c, 1.0, 4);
            let dout_device = device.upload(&dout).unwrap();
            for dropout in [None, Some(&dropout)] {
                let with_at = dropout.map(|dropout| (dropout, &at));
                // One addition and one product in f32, rounded once.
                dims.start = start;
                let mut expected = vec![0.0; rows * c];
                let (wte32, wpe32) = (widen(&wte), widen(&wpe));
                cpu::forward(&mut expected, &tokens, &wte32, &wpe32, t, c, start, dropout);
                let mut out = device.alloc::<T>(rows * c).unwrap();
                cuda::forward(&stream, &mut out, &tokens_device, tables, dims, with_at).unwrap();
                assert_same(&what, &out.download().unwrap(), &narrow(&expected));

                dims.start = 0;
                let (before_wte, before_wpe) =
                    (random::<f32>(v * c, 1.0, 5), random::<f32>(t * c, 1.0, 6));
                let (mut dwte, mut dwpe) = (
                    device.upload(&before_wte).unwrap(),
                    device.upload(&before_wpe).unwrap(),
                );
                let mut scratch = scratch(device, rows, c);
                cuda::backward(
                    &stream,
                    &mut dwte,
                    &mut dwpe,
                    &dout_device,
                    &tokens_device,
                    &mut scratch,
                    dims,
                    with_at,
                )
                .unwrap();
                let before = [&before_wte[..], &before_wpe[..]];
                let expected = plain_sums(before, widen(&dout), &tokens, t, dropout);
                // Up to 200 terms of up to 1.25 in f32.
                assert_near(&what, &dwte.download().unwrap(), &expected[0], 2e-6);
                assert_near(&what, &dwpe.download().unwrap(), &expected[1], 2e-6);
                assert_same(&what, &dout_device.download().unwrap(), &dout);
            }
        }
    });
}

#[test]
fn f32_matches_the_cpu_and_plain_sums() {
    check::<f32>();
}

#[test]
fn bf16_matches_the_cpu_and_plain_sums() {
    check::<bf16>();
}

#[test]
fn f16_matches_the_cpu_and_plain_sums() {
    check::<f16>();
}

fn check_layernorm<T: Float + PartialEq>() {
    let dropout = tests::dropout(0.2);
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        let at = device.upload(&dropout.at).unwrap();
        for [b, t, c, v] in [[3, 7, 33, 65], [2, 5, 72, 9], [1, 3, 600, 4]] {
            let rows = b * t;
            let tokens: Vec<i32> = tests::tokens(rows, v, 3)
                .iter()
                .map(|&t| t as i32)
                .collect();
            let tokens = device.upload(&tokens).unwrap();
            let [wte, wpe, weight, bias] = [v * c, t * c, c, c]
                .map(|n| device.upload(&random::<T>(n, 1.0, n as u64)).unwrap());
            let (wte, wpe) = (&wte, &wpe);
            let tables = Tables { wte, wpe };
            let parameters = Parameters {
                weight: &weight,
                bias: Some(&bias),
            };
            let dims = Dims {
                batch: b,
                time: t,
                channels: c,
                start: 0,
            };
            let run = |fused: bool| {
                let [mut x, mut out] = [0; 2].map(|_| device.alloc::<T>(rows * c).unwrap());
                let [mut mean, mut rstd] = [0; 2].map(|_| device.alloc(rows).unwrap());
                let mut normed = Normed {
                    out: &mut out,
                    mean: &mut mean,
                    rstd: &mut rstd,
                };
                let dropout = Some((&dropout, &at));
                if fused {
                    cuda::layernorm_forward(
                        &stream,
                        &mut x,
                        &mut normed,
                        &tokens,
                        tables,
                        parameters,
                        dims,
                        dropout,
                    )
                    .unwrap();
                } else {
                    cuda::forward(&stream, &mut x, &tokens, tables, dims, dropout).unwrap();
                    layernorm::cuda::forward(&stream, &mut normed, &x, parameters).unwrap();
                }
                let statistics = [mean, rstd].map(|buffer| buffer.download().unwrap());
                let tensors = [x, out].map(|buffer| buffer.download().unwrap());
                (tensors, statistics)
            };
            let (tensors, statistics) = run(true);
            let (expected_tensors, expected_statistics) = run(false);
            for (actual, expected) in tensors.iter().zip(&expected_tensors) {
                assert_same(device.name(), actual, expected);
            }
            assert_eq!(statistics, expected_statistics);
        }
    });
}

#[test]
fn with_layernorm_it_has_the_bits_of_the_two() {
    check_layernorm::<f32>();
    check_layernorm::<bf16>();
    check_layernorm::<f16>();
}
