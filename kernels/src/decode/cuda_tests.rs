//! Generation's operations on a device against plain loops in f64.

use half::{bf16, f16};

use super::cuda::{self, CacheDims, Linear};
use crate::cuda::testing::{assert_near, assert_same, for_each_device, random, widen};
use crate::cuda::{Buffer, Device, Float};

fn upload<T: Float>(device: &Device, data: &[T]) -> Buffer<T> {
    device.upload(data).unwrap()
}

fn rounded<T: Float>(x: f64) -> f64 {
    T::from_f64(x).to_f64()
}

/// LayerNorm of a row, rounded to T.
fn normed<T: Float>(x: &[f64], weight: &[f64], bias: Option<&[f64]>) -> Vec<f64> {
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    let rstd = 1.0 / (variance + 1e-5).sqrt();
    let value = |i: usize| (x[i] - mean) * rstd * weight[i] + bias.map_or(0.0, |bias| bias[i]);
    (0..x.len()).map(|i| rounded::<T>(value(i))).collect()
}

fn gelu(x: f64) -> f64 {
    crate::gelu::tests::exact(x)
}

/// N, K: one output; odd sizes; vectors; more rows than the warps of all blocks.
const SHAPES: [[usize; 2]; 4] = [[1, 1], [13, 37], [40, 64], [700, 24]];

fn check_linear<T: Float>() {
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        for [n, k] in SHAPES {
            let x = random::<T>(k, 1.0, 1);
            let weight = random::<T>(n * k, 1.0, 2);
            let (norm_weight, norm_bias) = (random::<T>(k, 1.0, 3), random::<T>(k, 1.0, 4));
            let (bias, residual) = (random::<T>(n, 1.0, 5), random::<T>(n, 1.0, 6));
            let [
                x_d,
                weight_d,
                norm_weight_d,
                norm_bias_d,
                bias_d,
                residual_d,
            ] = [&x, &weight, &norm_weight, &norm_bias, &bias, &residual]
                .map(|data| upload(device, data));
            for case in 0..16 {
                let [has_norm, has_bias, has_residual, has_gelu] =
                    [1, 2, 4, 8].map(|bit| case & bit != 0);
                let what = format!("{n}x{k} case {case} {} {}", T::NAME, device.name());
                let linear = Linear {
                    norm: has_norm.then_some((&norm_weight_d, has_bias.then_some(&norm_bias_d))),
                    weight: &weight_d,
                    bias: has_bias.then_some(&bias_d),
                    residual: has_residual.then_some(&residual_d),
                };
                let wide = widen(&norm_bias);
                let row = if has_norm {
                    let bias = has_bias.then_some(wide.as_slice());
                    normed::<T>(&widen(&x), &widen(&norm_weight), bias)
                } else {
                    widen(&x)
                };
                let value = |j: usize| {
                    let weights = widen(&weight[j * k..(j + 1) * k]);
                    let product = weights.iter().zip(&row).map(|(w, x)| w * x);
                    let mut v = product.sum::<f64>();
                    if has_bias {
                        v += bias[j].to_f64();
                    }
                    if has_gelu {
                        v = gelu(rounded::<T>(v));
                    }
                    v + if has_residual {
                        residual[j].to_f64()
                    } else {
                        0.0
                    }
                };
                let expected: Vec<f64> = (0..n).map(value).collect();
                // Rounding before GELU or of the normalised input may fall the other way.
                let tolerance = if has_gelu || has_norm { 2.0 } else { 1.0 } * T::ROUNDOFF + 4e-6;
                let mut out = device.alloc::<T>(n).unwrap();
                if has_gelu {
                    cuda::linear_gelu(&stream, &mut out, &x_d, linear).unwrap();
                } else {
                    cuda::linear(&stream, &mut out, &x_d, linear).unwrap();
                }
                assert_near(&what, &out.download().unwrap(), &expected, tolerance);
                if !has_gelu {
                    let mut out = device.alloc::<f32>(n).unwrap();
                    cuda::logits(&stream, &mut out, &x_d, linear).unwrap();
                    let roundoff = if has_norm { T::ROUNDOFF } else { 0.0 };
                    assert_near(&what, &out.download().unwrap(), &expected, roundoff + 4e-6);
                }
            }
        }
    });
}

#[test]
fn products_match_f64() {
    check_linear::<f32>();
    check_linear::<bf16>();
    check_linear::<f16>();
}

/// H, D, block: a single number; odd; vectors and a block that is longer than a round of keys; a
/// head of as many columns as threads.
const CACHES: [[usize; 3]; 4] = [[1, 1, 3], [3, 5, 40], [2, 64, 70], [1, 256, 4]];

/// Every position of a sequence, by the definition.
fn check_attention<T: Float>() {
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        for [heads, head_size, block_size] in CACHES {
            let dims = CacheDims {
                heads,
                head_size,
                block_size,
            };
            let c = heads * head_size;
            let rows = random::<T>(block_size * 3 * c, 2.0, 7);
            let wide = widen(&rows);
            let of = |t: usize, part: usize, head: usize| {
                let first = t * 3 * c + part * c + head * head_size;
                &wide[first..first + head_size]
            };
            let mut caches = [(); 2].map(|()| device.alloc::<T>(dims.len()).unwrap());
            for t in 0..block_size {
                let what = format!("{dims:?} {t} {} {}", T::NAME, device.name());
                let qkv = upload(device, &rows[t * 3 * c..(t + 1) * 3 * c]);
                let at = device.upload(&[0, t as i32]).unwrap();
                let mut out = device.alloc::<T>(c).unwrap();
                let places = caches.each_mut();
                cuda::attention(&stream, &mut out, places, &qkv, &at, dims).unwrap();
                let mut expected = Vec::new();
                for head in 0..heads {
                    let dot =
                        |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                    let scores = (0..=t).map(|s| dot(of(t, 0, head), of(s, 1, head)));
                    let weights = scores.map(|score| (score / (head_size as f64).sqrt()).exp());
                    let weights: Vec<f64> = weights.collect();
                    let total: f64 = weights.iter().sum();
                    for d in 0..head_size {
                        let values = weights.iter().enumerate();
                        let sum: f64 = values.map(|(s, w)| w * of(s, 2, head)[d]).sum();
                        expected.push(sum / total);
                    }
                }
                assert_near(
                    &what,
                    &out.download().unwrap(),
                    &expected,
                    T::ROUNDOFF + 2e-5,
                );
            }
            // A prompt stored at once leaves what its tokens left one by one.
            let mut at_once = [(); 2].map(|()| device.alloc::<T>(dims.len()).unwrap());
            let qkv = upload(device, &rows);
            cuda::store(&stream, at_once.each_mut(), &qkv, dims).unwrap();
            for (cache, expected) in at_once.iter().zip(&caches) {
                let [cache, expected] = [cache, expected].map(|it| widen(&it.download().unwrap()));
                assert!(cache == expected, "{dims:?} {}", T::NAME);
            }
        }
    });
}

#[test]
fn attention_matches_f64_at_every_position() {
    check_attention::<f32>();
    check_attention::<bf16>();
    check_attention::<f16>();
}

#[test]
fn embeddings_are_looked_up_where_the_device_says() {
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        let (v, block, c) = (5, 7, 300);
        let (wte, wpe) = (
            random::<bf16>(v * c, 1.0, 1),
            random::<bf16>(block * c, 1.0, 2),
        );
        let (wte_d, wpe_d) = (upload(device, &wte), upload(device, &wpe));
        for (token, position) in [(0, 6), (4, 0), (2, 3)] {
            let at = device.upload(&[token as i32, position as i32]).unwrap();
            let mut x = device.alloc::<bf16>(c).unwrap();
            cuda::embed(&stream, &mut x, &at, &wte_d, &wpe_d).unwrap();
            let sum = |i: usize| wte[token * c + i].to_f32() + wpe[position * c + i].to_f32();
            let expected: Vec<bf16> = (0..c).map(|i| bf16::from_f32(sum(i))).collect();
            assert_same(device.name(), &x.download().unwrap(), &expected);
        }
    });
}
