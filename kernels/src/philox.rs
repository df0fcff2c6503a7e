//! Philox4x32-10, the counter-based generator behind every random number of a run.
//!
//! A draw is a pure function of (seed, stream, counter), so nothing random has a state to save:
//! data order, dropout masks and evaluation windows follow from the step alone. The same function
//! is cheap on a GPU, which is why it is this one.
//!
//! Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// What a stream of random numbers is for. Streams of one seed are independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stream {
    Init = 1,
    TrainData = 2,
    EvalData = 3,
    Dropout = 4,
    Sample = 5,
    Corpus = 6,
    Rounding = 7,
}

/// A generator for one seed and stream.
#[derive(Clone, Copy, Debug)]
pub struct Philox {
    key: [u32; 2],
}

impl Philox {
    pub fn new(seed: u64, stream: Stream) -> Self {
        // The stream is mixed into the key through the generator itself, so that neighbouring
        // seeds and streams share nothing.
        let seed_key = [seed as u32, (seed >> 32) as u32];
        let mixed = philox4x32_10([stream as u32, 0, 0, 0], seed_key);
        Self {
            key: [mixed[0], mixed[1]],
        }
    }

    /// What the seed and the stream make of the counters, for code that runs elsewhere.
    pub fn key(&self) -> [u32; 2] {
        self.key
    }

    /// Four uniform 32-bit words for this counter. Inlined, so that loops over counters vectorise.
    #[inline(always)]
    pub fn block(&self, counter: [u32; 4]) -> [u32; 4] {
        philox4x32_10(counter, self.key)
    }

    /// A sequential reader of the words at counters `(0, place)`, `(1, place)`, …
    pub fn sequence(&self, place: [u32; 3]) -> Sequence {
        Sequence {
            philox: *self,
            place,
            index: 0,
            block: [0; 4],
            used: 4,
        }
    }
}

/// Consecutive words of a [`Philox`] at one place, for code that reads like an ordinary generator.
#[derive(Clone, Debug)]
pub struct Sequence {
    philox: Philox,
    place: [u32; 3],
    index: u32,
    block: [u32; 4],
    used: usize,
}

impl Sequence {
    pub fn next_u32(&mut self) -> u32 {
        if self.used == 4 {
            let [a, b, c] = self.place;
            self.block = self.philox.block([self.index, a, b, c]);
            self.index = self
                .index
                .checked_add(1)
                .expect("fewer than 2^34 draws at one place");
            self.used = 0;
        }
        self.used += 1;
        self.block[self.used - 1]
    }

    pub fn next_u64(&mut self) -> u64 {
        u64::from(self.next_u32()) | u64::from(self.next_u32()) << 32
    }

    /// Uniform in [0, 1), 53 bits.
    pub fn next_f64(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in 0..bound. The bias of the multiply-high method is below `bound` / 2^64.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "an empty range has no element to draw");
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// Standard normal, by Box and Muller.
    pub fn next_normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.next_f64()).ln()).sqrt();
        radius * (2.0 * std::f64::consts::PI * self.next_f64()).cos()
    }
}

#[inline(always)]
fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let low = u64::from(MULTIPLIER[0]) * u64::from(counter[0]);
        let high = u64::from(MULTIPLIER[1]) * u64::from(counter[2]);
        counter = [
            (high >> 32) as u32 ^ counter[1] ^ key[0],
            high as u32,
            (low >> 32) as u32 ^ counter[3] ^ key[1],
            low as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_known_answers_of_random123() {
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        let cases = [
            (
                [0; 4],
                [0; 2],
                [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8],
            ),
            (
                [!0; 4],
                [!0; 2],
                [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
            ),
            (
                pi,
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox4x32_10(counter, key), expected);
        }
    }

    #[test]
    fn normal_draws_have_mean_zero_and_variance_one() {
        let mut sequence = Philox::new(1, Stream::Init).sequence([0; 3]);
        let draws: Vec<f64> = (0..100_000).map(|_| sequence.next_normal()).collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / draws.len() as f64;
        assert!(mean.abs() < 0.015, "{mean}");
        assert!((variance - 1.0).abs() < 0.02, "{variance}");
    }

    #[test]
    fn streams_and_seeds_differ() {
        let first = |seed, stream| Philox::new(seed, stream).block([0; 4]);
        assert_ne!(first(1, Stream::Init), first(1, Stream::Dropout));
        assert_ne!(first(1, Stream::Init), first(2, Stream::Init));
        assert_ne!(first(1, Stream::Init), first(1 << 32, Stream::Init));
    }
}
