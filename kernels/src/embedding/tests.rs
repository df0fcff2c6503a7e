//! Embeddings against plain loops, and the same bits for any threads.

use proptest::prelude::*;

use super::cpu;
use crate::dropout::{self, Dropout};
use crate::philox::{Philox, Stream};
use crate::simd::tests::{assert_close, random, widen, with_any_threads};

pub(super) fn dropout(p: f64) -> Dropout {
    Dropout {
        p,
        philox: Philox::new(7, Stream::Dropout),
        place: 0,
        at: [3, 0],
    }
}

pub(super) fn tokens(n: usize, v: usize, seed: u64) -> Vec<u32> {
    let below = |x: f32| (f64::from(x.abs()) * v as f64) as u32;
    random(n, seed)
        .into_iter()
        .map(|x| below(x).min(v as u32 - 1))
        .collect()
}

proptest! {
    #[test]
    fn forward_adds_token_and_position(
        b in 0usize..5, t in 1usize..20, c in 1usize..70, v in 1usize..90, start in 0usize..5,
        p in prop_oneof![Just(None), (0.0f64..0.9).prop_map(Some)],
    ) {
        let (wte, wpe) = (random(v * c, 1), random((start + t + 2) * c, 2));
        let (tokens, dropout) = (tokens(b * t, v, 3), p.map(dropout));
        let mut out = vec![f32::NAN; b * t * c];
        cpu::forward(&mut out, &tokens, &wte, &wpe, t, c, start, dropout.as_ref());
        let mut expected: Vec<f32> = (0..b * t * c)
            .map(|i| {
                let (row, channel) = (i / c, i % c);
                wte[tokens[row] as usize * c + channel] + wpe[(start + row % t) * c + channel]
            })
            .collect();
        if let Some(dropout) = &dropout {
            dropout::cpu::forward(&mut expected, dropout);
        }
        prop_assert_eq!(out, expected);
    }

    #[test]
    fn backward_adds_the_gradient(
        b in 0usize..5, t in 1usize..20, c in 1usize..70, v in 1usize..90,
        p in prop_oneof![Just(None), (0.0f64..0.9).prop_map(Some)],
    ) {
        let (mut dwte, mut dwpe) = (random(v * c, 1), random((t + 2) * c, 2));
        let (tokens, dropout) = (tokens(b * t, v, 3), p.map(dropout));
        let mut dout = random(b * t * c, 4);
        let mut dropped = dout.clone();
        if let Some(dropout) = &dropout {
            dropout::cpu::forward(&mut dropped, dropout);
        }
        // The operation is linear: its gradient is its transpose.
        let (mut expected_wte, mut expected_wpe) = (widen(&dwte), widen(&dwpe));
        for (i, &dropped) in dropped.iter().enumerate() {
            let (row, channel) = (i / c, i % c);
            expected_wte[tokens[row] as usize * c + channel] += f64::from(dropped);
            expected_wpe[row % t * c + channel] += f64::from(dropped);
        }
        cpu::backward(&mut dwte, &mut dwpe, &mut dout, &tokens, t, c, dropout.as_ref());
        // A sum of up to a hundred terms, each up to 10.
        assert_close(&dwte, &expected_wte, 1e-5);
        assert_close(&dwpe, &expected_wpe, 1e-5);
        prop_assert_eq!(dout, dropped);
    }
}

#[test]
#[should_panic(expected = "assertion failed")]
fn a_token_outside_the_vocabulary_is_refused() {
    cpu::forward(&mut [0.0; 4], &[2], &[0.0; 8], &[0.0; 4], 1, 4, 0, None);
}

#[test]
fn threads_do_not_change_a_bit() {
    let (b, t, c, v) = (12, 64, 128, 65);
    let (tokens, dout) = (tokens(b * t, v, 3), random(b * t * c, 4));
    with_any_threads(|| {
        let (mut dwte, mut dwpe) = (vec![0.0; v * c], vec![0.0; t * c]);
        let dropout = dropout(0.2);
        let mut dout = dout.clone();
        cpu::backward(
            &mut dwte,
            &mut dwpe,
            &mut dout,
            &tokens,
            t,
            c,
            Some(&dropout),
        );
        let mut out = vec![0.0; b * t * c];
        cpu::forward(&mut out, &tokens, &dwte, &dwpe, t, c, 0, Some(&dropout));
        [out, dwte, dwpe].concat()
    });
}
