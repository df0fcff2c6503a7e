//! Attention against a plain f64 loop, on shapes that no tile divides.

use proptest::prelude::*;

use super::{Dims, cpu};
use crate::dropout::Dropout;
use crate::philox::{Philox, Stream};

/// f32 rounds at 6e-8; inputs are of size 1, and sums of up to 300 products of them in any order
/// stay within this of the f64 result.
const TOLERANCE: f64 = 2e-5;

pub(super) fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut sequence = Philox::new(seed, Stream::Init).sequence([0; 3]);
    (0..len).map(|_| sequence.next_normal() as f32).collect()
}

pub(super) fn dims(batch: usize, time: usize, heads: usize, head_size: usize) -> Dims {
    Dims {
        batch,
        time,
        heads,
        head_size,
    }
}

pub(super) fn dropout(seed: u64) -> Dropout {
    Dropout {
        p: 0.2,
        philox: Philox::new(seed, Stream::Dropout),
        place: 4,
        at: [7, 1 << 31],
    }
}

/// 0 or 1/(1-p) for attention weight `index`, as the contract says it, a word at a time.
fn factor(dropout: Option<&Dropout>, index: usize) -> f64 {
    let Some(dropout) = dropout else { return 1.0 };
    let [step, rest] = dropout.at;
    let counter = [(index / 4) as u32, dropout.place, step, rest];
    let word = dropout.philox.block(counter)[index % 4];
    if word >= (dropout.p * (1u64 << 32) as f64) as u32 {
        f64::from((1.0 / (1.0 - dropout.p)) as f32)
    } else {
        0.0
    }
}

/// The operation as its formula reads, in f64: out, lse, and the weights before dropout.
pub(super) struct Reference {
    pub(super) out: Vec<f64>,
    pub(super) lse: Vec<f64>,
    /// (B, H, T, T)
    probabilities: Vec<f64>,
}

/// Element of `qkv` (part 0, 1, 2) or of `out` (part 0, 1 part).
fn at(dims: Dims, parts: usize, part: usize, [batch, token, head, lane]: [usize; 4]) -> usize {
    let row = batch * dims.time + token;
    ((row * parts + part) * dims.heads + head) * dims.head_size + lane
}

pub(super) fn reference(qkv: &[f64], dims: Dims, dropout: Option<&Dropout>) -> Reference {
    let Dims {
        batch,
        time,
        heads,
        head_size,
    } = dims;
    let scale = 1.0 / (head_size as f64).sqrt();
    let mut result = Reference {
        out: vec![0.0; qkv.len() / 3],
        lse: Vec::new(),
        probabilities: vec![0.0; batch * heads * time * time],
    };
    for (b, h, query) in rows(dims) {
        let score = |key: usize| -> f64 {
            (0..head_size)
                .map(|lane| {
                    qkv[at(dims, 3, 0, [b, query, h, lane])]
                        * qkv[at(dims, 3, 1, [b, key, h, lane])]
                })
                .sum::<f64>()
                * scale
        };
        let scores: Vec<f64> = (0..=query).map(score).collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
        result.lse.push(largest + total.ln());
        let first = ((b * heads + h) * time + query) * time;
        for (key, score) in scores.iter().enumerate() {
            let probability = (score - largest).exp() / total;
            result.probabilities[first + key] = probability;
            let weight = probability * factor(dropout, first + key);
            for lane in 0..head_size {
                result.out[at(dims, 1, 0, [b, query, h, lane])] +=
                    weight * qkv[at(dims, 3, 2, [b, key, h, lane])];
            }
        }
    }
    result
}

/// Gradient of `qkv` by the chain rule through the reference.
pub(super) fn reference_gradient(
    dout: &[f64],
    qkv: &[f64],
    dims: Dims,
    dropout: Option<&Dropout>,
) -> Vec<f64> {
    let Dims {
        time,
        heads,
        head_size,
        ..
    } = dims;
    let scale = 1.0 / (head_size as f64).sqrt();
    let probabilities = reference(qkv, dims, dropout).probabilities;
    let mut dqkv = vec![0.0; qkv.len()];
    for (b, h, query) in rows(dims) {
        let first = ((b * heads + h) * time + query) * time;
        let mut dweights = vec![0.0; query + 1];
        for (key, dweight) in dweights.iter_mut().enumerate() {
            let factor = factor(dropout, first + key);
            for lane in 0..head_size {
                let dout = dout[at(dims, 1, 0, [b, query, h, lane])];
                let v = at(dims, 3, 2, [b, key, h, lane]);
                *dweight += factor * dout * qkv[v];
                dqkv[v] += factor * probabilities[first + key] * dout;
            }
        }
        let weighted = |(key, dweight): (usize, &f64)| probabilities[first + key] * dweight;
        let mean: f64 = dweights.iter().enumerate().map(weighted).sum();
        for (key, dweight) in dweights.iter().enumerate() {
            let dscore = probabilities[first + key] * (dweight - mean) * scale;
            for lane in 0..head_size {
                let q = at(dims, 3, 0, [b, query, h, lane]);
                let k = at(dims, 3, 1, [b, key, h, lane]);
                dqkv[q] += dscore * qkv[k];
                dqkv[k] += dscore * qkv[q];
            }
        }
    }
    dqkv
}

fn rows(dims: Dims) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..dims.batch).flat_map(move |b| {
        (0..dims.heads).flat_map(move |h| (0..dims.time).map(move |query| (b, h, query)))
    })
}

/// out and lse of the operation under test, written over rubbish.
fn forward(qkv: &[f32], dims: Dims, dropout: Option<&Dropout>) -> (Vec<f32>, Vec<f32>) {
    let mut out = vec![f32::NAN; qkv.len() / 3];
    let mut lse = vec![f32::NAN; dims.batch * dims.heads * dims.time];
    cpu::forward(&mut out, &mut lse, qkv, dims, dropout);
    (out, lse)
}

/// dqkv of the operation under test, written over rubbish.
fn backward(dout: &[f32], qkv: &[f32], dims: Dims, dropout: Option<&Dropout>) -> Vec<f32> {
    let (out, lse) = forward(qkv, dims, dropout);
    let mut dqkv = vec![f32::NAN; qkv.len()];
    let mut scratch = vec![f32::NAN; cpu::backward_scratch_len(dims)];
    cpu::backward(
        &mut dqkv,
        dout,
        qkv,
        &out,
        &lse,
        dims,
        dropout,
        &mut scratch,
    );
    dqkv
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

#[track_caller]
fn assert_close(what: &str, got: &[f32], expected: &[f64]) {
    assert_eq!(got.len(), expected.len());
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(*got) - expected).abs();
        assert!(
            error <= TOLERANCE * (1.0 + expected.abs()),
            "{what}[{i}]: expected {expected}, got {got}"
        );
    }
}

fn check(dims: Dims, dropout: Option<&Dropout>, seed: u64) {
    let len = dims.batch * dims.time * dims.channels();
    let (qkv, dout) = (random(3 * len, seed), random(len, seed + 1));
    let expected = reference(&wide(&qkv), dims, dropout);
    let (out, lse) = forward(&qkv, dims, dropout);
    assert_close("out", &out, &expected.out);
    assert_close("lse", &lse, &expected.lse);
    let dqkv = backward(&dout, &qkv, dims, dropout);
    let expected = reference_gradient(&wide(&dout), &wide(&qkv), dims, dropout);
    assert_close("dqkv", &dqkv, &expected);
}

#[test]
fn equals_the_f64_loop_for_every_head_size() {
    for head_size in [1, 16, 24, 32, 64, 80, 128] {
        check(dims(1, 70, 2, head_size), None, head_size as u64);
        check(
            dims(1, 67, 1, head_size),
            Some(&dropout(3)),
            head_size as u64,
        );
    }
}

#[test]
fn equals_the_f64_loop_over_several_chunks() {
    // 301 tokens are two chunks of keys; 1 x 2 heads compute them in parallel, 64 do not.
    check(dims(1, 301, 2, 16), None, 1);
    check(dims(1, 301, 2, 16), Some(&dropout(1)), 2);
    check(dims(32, 258, 2, 2), Some(&dropout(2)), 3);
}

#[test]
fn equals_the_f64_loop_at_the_edges_of_tiles() {
    for time in [1, 2, 8, 15, 16, 17, 63, 64, 65, 128] {
        check(dims(2, time, 1, 8), Some(&dropout(5)), time as u64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn equals_the_f64_loop_on_random_shapes(
        batch in 1usize..4,
        time in 1usize..140,
        heads in 1usize..4,
        head_size in 1usize..40,
        drops in any::<bool>(),
        seed in any::<u32>(),
    ) {
        let dropout = drops.then(|| dropout(u64::from(seed)));
        check(dims(batch, time, heads, head_size), dropout.as_ref(), u64::from(seed));
    }
}

/// The chain rule above against differences of the formula: the gradients rest on nothing else.
#[test]
fn reference_gradient_is_the_slope_of_the_reference() {
    const STEP: f64 = 1e-5;
    let dims = dims(2, 5, 2, 3);
    let dropout = dropout(9);
    let len = dims.batch * dims.time * dims.channels();
    let (qkv, dout) = (wide(&random(3 * len, 1)), wide(&random(len, 2)));
    let loss = |qkv: &[f64]| -> f64 {
        let out = reference(qkv, dims, Some(&dropout)).out;
        out.iter().zip(&dout).map(|(out, dout)| out * dout).sum()
    };
    let gradient = reference_gradient(&dout, &qkv, dims, Some(&dropout));
    for (i, gradient) in gradient.iter().enumerate() {
        let mut moved = qkv.clone();
        moved[i] = qkv[i] + STEP;
        let above = loss(&moved);
        moved[i] = qkv[i] - STEP;
        let slope = (above - loss(&moved)) / (2.0 * STEP);
        // The error of a central difference is of the size of its step squared.
        assert!((slope - gradient).abs() < 1e-8, "{i}: {slope} {gradient}");
    }
}

#[test]
fn scores_beyond_the_range_of_exp_do_not_overflow() {
    let dims = dims(1, 90, 1, 16);
    let qkv: Vec<f32> = random(90 * 48, 1).iter().map(|x| 20.0 * x).collect();
    let (out, lse) = forward(&qkv, dims, None);
    let expected = reference(&wide(&qkv), dims, None);
    assert!(expected.lse.iter().any(|lse| *lse > 1000.0));
    for (got, expected) in out
        .iter()
        .zip(&expected.out)
        .chain(lse.iter().zip(&expected.lse))
    {
        // Scores of 2000 are rounded at 1e-4, and weights by as much.
        assert!((f64::from(*got) - expected).abs() < 2e-3 * (1.0 + expected.abs()));
    }
}

#[test]
fn a_nan_is_not_hidden() {
    let dims = dims(1, 70, 1, 16);
    let mut qkv = random(70 * 48, 1);
    qkv[at(dims, 3, 1, [0, 66, 0, 3])] = f32::NAN;
    let (out, _) = forward(&qkv, dims, None);
    let (before, after) = out.split_at(66 * 16);
    assert!(
        before.iter().all(|x| x.is_finite()),
        "a token saw the future"
    );
    assert!(after.iter().all(|x| x.is_nan()));
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    for dims in [dims(1, 530, 3, 20), dims(33, 300, 2, 4)] {
        let len = dims.batch * dims.time * dims.channels();
        let (qkv, dout) = (random(3 * len, 1), random(len, 2));
        let dropout = dropout(1);
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| {
                let (out, lse) = forward(&qkv, dims, Some(&dropout));
                let dqkv = backward(&dout, &qkv, dims, Some(&dropout));
                let all = out.into_iter().chain(lse).chain(dqkv);
                all.map(f32::to_bits).collect::<Vec<_>>()
            })
        };
        let one = run(1);
        assert!(one == run(2) && one == run(3), "{dims:?}");
    }
}

#[test]
fn decode_gives_the_last_row_of_forward() {
    for (heads, head_size, time) in [
        (2, 16, 40),
        (1, 24, 33),
        (3, 64, 20),
        (2, 83, 18),
        (4, 128, 180),
    ] {
        let dims = dims(1, time, heads, head_size);
        let cache = cpu::CacheDims {
            heads,
            head_size,
            block_size: time,
        };
        let channels = dims.channels();
        let qkv = random(time * 3 * channels, time as u64);
        let expected = reference(&wide(&qkv), dims, None).out;
        let mut keys = vec![0.0; cpu::key_cache_len(heads, head_size, time)];
        let mut values = vec![0.0; cpu::value_cache_len(heads, head_size, time)];
        let prompt = time / 2;
        let (first, rest) = qkv.split_at(prompt * 3 * channels);
        cpu::store(&mut keys, &mut values, first, cache, 0);
        for (token, qkv) in (prompt..).zip(rest.chunks_exact(3 * channels)) {
            let mut out = vec![f32::NAN; channels];
            cpu::decode(&mut out, &mut keys, &mut values, qkv, cache, token);
            assert_close("out", &out, &expected[token * channels..][..channels]);
        }
    }
}
