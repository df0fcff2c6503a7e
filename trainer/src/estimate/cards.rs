//! The GPUs that `configs/prices.toml` lists, as their data sheets describe them, and which share
//! of that a run is expected to reach. Called by the estimate.

/// A GPU by its data sheet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Card {
    pub name: &'static str,
    /// What price lists call it besides.
    also: &'static [&'static str],
    /// Types of machines that have it, and how many of it.
    machines: &'static [(&'static str, u32)],
    pub compute_capability: (u32, u32),
    pub multiprocessors: u32,
    /// What the driver offers of its memory, GiB.
    pub memory_gib: f64,
    /// Dense products in 16 bits with sums in fp32, TFLOP/s.
    pub tflops: f64,
    /// Of its memory, GB/s.
    pub gigabytes_per_second: f64,
    /// Part of `tflops` that is open to the instruction `mma.sync`, or to its power limit.
    reach: f64,
}

/// What part of a data sheet's rates a run is expected to reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    pub products: f64,
    pub attention: f64,
    pub memory: f64,
    pub basis: Basis,
}

/// What a figure rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Basis {
    /// A share that nobody has measured with this program on this GPU.
    Estimated,
    /// A share that `bench/RESULTS.md` holds a measurement for.
    Measured,
}

impl Basis {
    pub fn name(self) -> &'static str {
        match self {
            Self::Estimated => "estimated",
            Self::Measured => "measured",
        }
    }
}

/// Of large products on the instruction that the kernels use; public end-to-end runs of GPT-2 124M
/// on A100s lie at 0.28 (nanoGPT) and 0.60 (llm.c) of all FLOPs.
const PRODUCTS: f64 = 0.45;
/// FlashAttention-2 with heads of 64 and 1024 tokens reaches 0.19 of an H100's rate, forward and
/// backward together, more on older cards.
const ATTENTION: f64 = 0.20;
/// What is bound by memory, LayerNorm for one, comes to 0.8 in the fastest public kernels.
const MEMORY: f64 = 0.70;

/// Where the shares come from, for people.
pub const SHARE_SOURCE: &str = "0.45 of the data sheet's 16-bit rate for products, 0.20 for \
     attention, 0.70 of its bandwidth: assumed, between nanoGPT (0.28) and llm.c (0.60) on A100s; \
     less on H100, H200 and B200 (mma.sync reaches 0.62 and 0.32 of the rate) and on T4, L4, A10 \
     and L40S (power)";

/// The oldest architecture that the kernels are compiled for.
const COMPUTE_CAPABILITY_MIN: (u32, u32) = (7, 5);

impl Card {
    /// The card of this name in a price list, or of this type of machine, and how many of it the
    /// price is for.
    pub fn of_price(name: &str, is_machine: bool) -> Option<(&'static Self, u32)> {
        CARDS.iter().find_map(|card| {
            if is_machine {
                let machine = card.machines.iter().find(|(machine, _)| *machine == name);
                return machine.map(|(_, gpus)| (card, *gpus));
            }
            let is_it = card.name == name || card.also.contains(&name);
            is_it.then_some((card, 1))
        })
    }

    /// Cards whose name has all the words of `wanted`, whatever their case: `a100` is two of them.
    pub fn named(wanted: &str) -> Vec<&'static Self> {
        let wanted = words(wanted);
        let is_it = |card: &&Self| {
            let names = std::iter::once(&card.name).chain(card.also);
            let mut names = names.map(|name| words(name));
            !wanted.is_empty() && names.any(|name| wanted.iter().all(|word| name.contains(word)))
        };
        CARDS.iter().filter(is_it).collect()
    }

    pub fn all() -> &'static [Self] {
        &CARDS
    }

    pub fn is_supported(&self) -> bool {
        self.compute_capability >= COMPUTE_CAPABILITY_MIN
    }

    /// `bfloat16` where it has that, as the key `dtype=auto` decides.
    pub fn dtype(&self) -> &'static str {
        if self.compute_capability >= (8, 0) {
            "bfloat16"
        } else {
            "float16"
        }
    }

    pub fn share(&self) -> Share {
        Share {
            products: PRODUCTS * self.reach,
            attention: ATTENTION * self.reach,
            memory: MEMORY,
            basis: Basis::Estimated,
        }
    }
}

fn words(name: &str) -> Vec<String> {
    let split = name.split(|c: char| !c.is_ascii_alphanumeric());
    let words = split.filter(|word| !word.is_empty());
    words.map(str::to_ascii_lowercase).collect()
}

/// What `mma.sync` reaches on cards whose full rate needs newer instructions: 0.62 on Hopper
/// (arXiv 2402.13499, table of mma and wgmma); the same a multiprocessor and cycle on Blackwell.
const HOPPER: f64 = 0.62;
const BLACKWELL: f64 = 0.32;

#[rustfmt::skip]
macro_rules! card {
    ($name:literal, $also:expr, $machines:expr, $capability:expr, $processors:literal, $gib:literal,
     $tflops:literal, $bandwidth:literal, $reach:expr) => {
        Card {
            name: $name, also: $also, machines: $machines, compute_capability: $capability,
            multiprocessors: $processors, memory_gib: $gib, tflops: $tflops,
            gigabytes_per_second: $bandwidth, reach: $reach,
        }
    };
}

const P3: [(&str, u32); 2] = [("p3.2xlarge", 1), ("p3.8xlarge", 4)];

#[rustfmt::skip]
static CARDS: [Card; 15] = [
    card!("B200", &[], &[], (10, 0), 148, 178.0, 2250.0, 8000.0, BLACKWELL),
    card!("H200", &[], &[], (9, 0), 132, 139.8, 989.0, 4800.0, HOPPER),
    card!("H100", &[], &[], (9, 0), 132, 79.1, 989.0, 3350.0, HOPPER),
    card!("A100-80GB", &[], &[], (8, 0), 108, 79.2, 312.0, 2039.0, 1.0),
    card!("A100-40GB", &["A100"], &[("p4d.24xlarge", 8)], (8, 0), 108, 39.4, 312.0, 1555.0, 1.0),
    card!("L40S", &[], &[], (8, 9), 142, 44.4, 362.0, 864.0, 0.8),
    card!("A6000", &[], &[], (8, 6), 84, 47.4, 154.8, 768.0, 1.0),
    card!("A10", &[], &[], (8, 6), 72, 22.0, 125.0, 600.0, 0.8),
    card!("A10G", &[], &[], (8, 6), 80, 22.0, 70.0, 600.0, 1.0),
    card!("RTX 4090", &[], &[], (8, 9), 128, 23.5, 165.2, 1008.0, 1.0),
    card!("L4", &[], &[], (8, 9), 58, 22.0, 121.0, 300.0, 0.6),
    card!("A4000", &[], &[], (8, 6), 48, 15.6, 76.7, 448.0, 1.0),
    card!("T4", &[], &[], (7, 5), 40, 14.6, 65.0, 320.0, 0.9),
    card!("V100", &[], &P3, (7, 0), 80, 15.8, 125.0, 900.0, 1.0),
    card!("P5000", &[], &[], (6, 1), 20, 16.0, 8.9, 288.0, 1.0),
];
