//! The micro-kernels' launches: inputs from a fixed generator, sizes, how outputs are compared.

use half::{bf16, f16};

use crate::philox::{Philox, Sequence, Stream};

/// One launch of one micro-kernel.
pub(super) struct Case {
    /// The kernel's without `conformance_`, then perhaps `/` and which inputs.
    pub(super) name: &'static str,
    pub(super) threads: u32,
    pub(super) shared_bytes: u32,
    pub(super) input: Vec<u32>,
    pub(super) output_words: usize,
    /// bf16 on tensor cores needs 8.0.
    pub(super) compute_capability_min: (u32, u32),
    pub(super) compare: Compare,
}

/// When two outputs are the same.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Compare {
    Bits,
    /// As f32: the same bits, or both NaN, whose payload no one promises.
    Float,
    /// As f32: `|a - b| <= absolute + relative |b|`, or both NaN, or the same infinity.
    Near {
        relative: f32,
        absolute: f32,
    },
}

impl Compare {
    pub(super) fn same(self, actual: u32, expected: u32) -> bool {
        let (a, b) = (f32::from_bits(actual), f32::from_bits(expected));
        let close = match self {
            Self::Bits => false,
            Self::Float => a.is_nan() && b.is_nan(),
            Self::Near { relative, absolute } => {
                a.is_nan() && b.is_nan() || (a - b).abs() <= absolute + relative * b.abs()
            }
        };
        actual == expected || close
    }
}

/// Tensor cores round sums of products in their own way: at most 17 terms, each below 1 and cut
/// after 23 bits or later.
const MMA: Compare = Compare::Near {
    relative: 0.0,
    absolute: 1.0 / (1 << 17) as f32,
};

/// PTX ISA: ex2.approx and lg2.approx are within 2^-22, relative or absolute; rsqrtf within 2 ulp.
const APPROXIMATE: Compare = Compare::Near {
    relative: 1.0 / (1 << 20) as f32,
    absolute: 1.0 / (1 << 20) as f32,
};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = vec![
        case("load_matrix_1", 32, words(128), 1),
        case("load_matrix_2", 32, words(128), 2),
        case("load_matrix_4", 32, words(128), 4),
        case("load_matrix_1_transposed", 32, words(128), 1),
        case("load_matrix_2_transposed", 32, words(128), 2),
        case("load_matrix_4_transposed", 32, words(128), 4),
        case("copy_async_zero_fill", 64, words(256), 4),
        case("copy_async_groups", 64, words(768), 12),
        case("shuffles", 32, words(32), 10),
        case("votes", 32, words(32), 6),
        case("warp_reductions", 32, reals(32), 2),
        case("block_reductions", 96, reals(96), 3),
        case("named_barriers", 128, words(128), 2),
        case("narrow_bf16", 256, awkward(256), 1),
        case("narrow_f16", 256, awkward(256), 1),
        float(case("widen_bf16", 256, halves(256), 2)),
        float(case("widen_f16", 256, halves(256), 2)),
        case("packing", 32, reals(64), 4),
        float(case("arithmetic_f32", 128, operands(128 * 3), 7)),
        case("integers", 64, words(128), 4),
        case("philox", 64, words(64 * 6), 4),
        case("vectors_f32", 64, words(256), 4),
        case("vectors_bf16", 64, words(256), 4),
        case("vectors_f16", 64, words(256), 4),
        Case {
            shared_bytes: 1024,
            ..case("dynamic_shared", 64, words(64), 4)
        },
        Case {
            output_words: 16,
            ..case("atomics", 64, words(64), 1)
        },
        Case {
            compare: APPROXIMATE,
            ..case("approximations", 128, exponents(128), 3)
        },
    ];
    cases.extend(mma_cases());
    cases
}

/// Small integers, whose sums are exact in whatever order, prove the layouts; the rest of the
/// numbers needs a tolerance.
fn mma_cases() -> Vec<Case> {
    let f16_bits = |x: f32| f16::from_f32(x).to_bits();
    let bf16_bits = |x: f32| bf16::from_f32(x).to_bits();
    let bf16_min = (8, 0);
    let of = |name, registers, bits: &dyn Fn(f32) -> u16, integers, compute_capability_min| Case {
        compute_capability_min,
        compare: if integers { Compare::Bits } else { MMA },
        ..case(name, 32, fragments(registers, bits, integers), 4)
    };
    vec![
        of("mma_m16n8k16_f16/integers", 6, &f16_bits, true, (7, 5)),
        of("mma_m16n8k16_f16/reals", 6, &f16_bits, false, (7, 5)),
        of("mma_m16n8k8_f16/integers", 3, &f16_bits, true, (7, 5)),
        of("mma_m16n8k8_f16/reals", 3, &f16_bits, false, (7, 5)),
        of("mma_m16n8k16_bf16/integers", 6, &bf16_bits, true, bf16_min),
        of("mma_m16n8k16_bf16/reals", 6, &bf16_bits, false, bf16_min),
        of("mma_m16n8k8_bf16/integers", 3, &bf16_bits, true, bf16_min),
        of("mma_m16n8k8_bf16/reals", 3, &bf16_bits, false, bf16_min),
    ]
}

fn case(name: &'static str, threads: u32, input: Vec<u32>, words_per_thread: usize) -> Case {
    Case {
        name,
        threads,
        shared_bytes: 0,
        input,
        output_words: threads as usize * words_per_thread,
        compute_capability_min: (7, 5),
        compare: Compare::Bits,
    }
}

fn float(case: Case) -> Case {
    Case {
        compare: Compare::Float,
        ..case
    }
}

/// A generator for one kind of input.
fn sequence(kind: u32) -> Sequence {
    Philox::new(75, Stream::Init).sequence([kind, 0, 0])
}

/// Any bits.
fn words(n: usize) -> Vec<u32> {
    let mut sequence = sequence(0);
    (0..n).map(|_| sequence.next_u32()).collect()
}

/// f32 in -1..1.
fn reals(n: usize) -> Vec<u32> {
    let mut sequence = sequence(1);
    let mut next = || (2.0 * sequence.next_f64() - 1.0) as f32;
    (0..n).map(|_| next().to_bits()).collect()
}

/// f32 in -20..20.
fn exponents(n: usize) -> Vec<u32> {
    let scaled = |bits| (20.0 * f32::from_bits(bits)).to_bits();
    reals(n).into_iter().map(scaled).collect()
}

/// Two 16-bit patterns a word: the edges, then any, NaN and infinity among them.
fn halves(n: usize) -> Vec<u32> {
    let edges = [
        0x8000_0000,
        0x0001_8001, // the smallest subnormals
        0x03FF_0400, // f16: the largest subnormal, the smallest normal
        0x007F_0080, // bf16 likewise
        0x7BFF_FBFF, // f16: the largest
        0x7C00_FC00, // f16: infinity
        0x7F7F_FF7F, // bf16: the largest
        0x7F80_FF80, // bf16: infinity
        0x7FFF_7C01, // NaN
    ];
    edges.into_iter().chain(words(n)).take(n).collect()
}

/// f32 at which conversions to 16 bits go wrong first: ties, overflow, subnormals, NaN.
fn awkward(n: usize) -> Vec<u32> {
    let values = [
        0.0,
        1.0,
        65504.0, // f16: the largest, then the last that rounds to it, then the first to infinity
        65519.996,
        65520.0,
        65536.0,
        6.103_515_6e-5, // f16: the smallest normal
        6.097_555e-5,
        5.960_464_5e-8,         // f16: the smallest subnormal
        2.980_232_2e-8,         // half of it: a tie with zero
        2.980_232_6e-8,         // just above
        8.940_697e-8,           // a tie of the smallest two
        1.175_494_4e-38,        // f32 and bf16: the smallest normal
        9.183_55e-41,           // bf16: the smallest subnormal
        f32::from_bits(0x8000), // a tie of it with zero
        f32::from_bits(1),
        f32::MAX,
        3.389_531_4e38, // bf16: the largest, then the tie with infinity
        3.396_177_5e38,
        f32::INFINITY,
        f32::NAN,
    ];
    let mut bits: Vec<u32> = values.iter().map(|x: &f32| x.to_bits()).collect();
    bits.extend([0x7F80_0001, 0xFFC1_2345]); // more NaN
    // Any number that f16 or bf16 holds, with the bits that it does not hold near a tie.
    let mut sequence = sequence(2);
    while bits.len() < n {
        let word = sequence.next_u32();
        let f16_exponent = 127 - 26 + (word >> 8) % 44;
        let near = |tie: u32| (tie - 1) + word % 3;
        bits.push(match word >> 30 {
            0 | 1 => (sequence.next_u32() & 0xFFFF_0000) | near(0x8000),
            2 => f16_exponent << 23 | (sequence.next_u32() & 0x007F_E000) | near(0x1000),
            _ => sequence.next_u32(),
        });
    }
    bits.truncate(n);
    bits
}

/// f32 of many magnitudes, results that overflow and vanish among them. No zeros: the sign of the
/// larger of two zeros is not the same everywhere.
fn operands(n: usize) -> Vec<u32> {
    let edges = [
        f32::MAX,
        2.0,
        1.0,
        f32::MIN_POSITIVE,
        0.5,
        -1.0,
        f32::INFINITY,
        -3.0,
        f32::NEG_INFINITY,
        f32::NAN,
        7.0,
        1.0,
        f32::from_bits(1),
        3.0,
        -5.0,
    ];
    let mut sequence = sequence(3);
    let mut random = || {
        let (sign_and_mantissa, exponent) = (sequence.next_u32(), sequence.next_u32());
        (sign_and_mantissa & 0x807F_FFFF) | (87 + exponent % 80) << 23
    };
    let edges = edges.iter().map(|x| x.to_bits());
    edges
        .chain(std::iter::from_fn(|| Some(random())))
        .take(n)
        .collect()
}

/// For each lane four f32 of C, then `registers` registers with two 16-bit numbers each.
fn fragments(registers: usize, bits: &dyn Fn(f32) -> u16, integers: bool) -> Vec<u32> {
    let mut sequence = sequence(4);
    let mut next = || {
        if integers {
            (sequence.next_u32() % 17) as f32 - 8.0
        } else {
            (2.0 * sequence.next_f64() - 1.0) as f32
        }
    };
    let mut words = Vec::new();
    for _lane in 0..32 {
        words.extend((0..4).map(|_| next().to_bits()));
        for _register in 0..registers {
            let (low, high) = (bits(next()), bits(next()));
            words.push(u32::from(low) | u32::from(high) << 16);
        }
    }
    words
}
