//! Which tile a product is made of, and into how many parts its sums are cut: a pure function of
//! the sizes and the device.

use crate::cuda::Properties;

/// The part of the result that a block makes: 128 x 128 or 64 x 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tile {
    Large,
    Small,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) tile: Tile,
    /// Terms of each sum that a block adds up, a multiple of `DEPTH`.
    pub(super) part_depth: usize,
}

/// Terms of the sums that are in shared memory at a time; as in tile.cuh, a multiple of that of
/// product.cuh.
const DEPTH: usize = 32;
const PARTS_MAX: usize = 16;
const PART_DEPTH_MIN: usize = 256;

impl Tile {
    pub(super) fn side(self) -> usize {
        match self {
            Self::Large => 128,
            Self::Small => 64,
        }
    }

    /// Of a block: 4 warps for types of 16 bits, for f32 one for each 32 x 64 of the result.
    pub(super) fn threads(self, is_16_bit: bool) -> u32 {
        match (self, is_16_bit) {
            (_, true) => 128,
            (Self::Large, false) => 256,
            (Self::Small, false) => 64,
        }
    }

    /// Of a block: the ring of stages, or for f32 what the sums are passed through.
    pub(super) fn shared_bytes(self, is_16_bit: bool, properties: &Properties) -> u32 {
        let side = self.side() as u32;
        if is_16_bit {
            let stages = if properties.compute_capability >= (8, 0) {
                3
            } else {
                2
            };
            return stages * 2 * side * DEPTH as u32 * 2;
        }
        let warps = self.threads(false) / 32;
        let (stages, passed) = (2 * 2 * 16 * (side + 4) * 4, warps * 16 * (64 + 8) * 4);
        stages.max(passed)
    }

    /// Multiply-adds on a multiprocessor as a share of what the large tile reaches. [estimate]
    fn efficiency(self) -> f64 {
        match self {
            Self::Large => 1.0,
            Self::Small => 0.6,
        }
    }
}

impl Choice {
    /// The choice of least estimated time for (rows, depth) by (depth, cols); cut in parts only if
    /// `may_cut`. Estimates only choose: results of all choices are right.
    pub(super) fn of(
        rows: usize,
        cols: usize,
        depth: usize,
        may_cut: bool,
        properties: &Properties,
    ) -> Self {
        let parts_max = if may_cut {
            PARTS_MAX.min(depth / PART_DEPTH_MIN).max(1)
        } else {
            1
        };
        let mut best = (
            f64::INFINITY,
            Self {
                tile: Tile::Small,
                part_depth: DEPTH,
            },
        );
        for tile in [Tile::Large, Tile::Small] {
            for parts in 1..=parts_max {
                let part_depth = depth.div_ceil(parts).next_multiple_of(DEPTH).max(DEPTH);
                let choice = Self { tile, part_depth };
                let time = choice.time(rows, cols, depth, properties);
                if time < best.0 {
                    best = (time, choice);
                }
            }
        }
        best.1
    }

    /// Parts of sums of `depth` terms.
    pub(super) fn parts(self, depth: usize) -> usize {
        depth.div_ceil(self.part_depth).max(1)
    }

    /// In multiply-adds of a multiprocessor at full speed; it does 1024 of them in a cycle (sm_80).
    fn time(self, rows: usize, cols: usize, depth: usize, properties: &Properties) -> f64 {
        /// Terms of a sum that take as long as the start and the end of a tile. [estimate]
        const EDGES: f64 = 128.0;
        /// Bytes of DRAM for a multiprocessor in the time of a multiply-add: 15 in a cycle.
        const BYTES: f64 = 15.0 / 1024.0;
        /// Another kernel: 2 us at 1.7 GHz.
        const LAUNCH: f64 = 2e-6 * 1.7e9 * 1024.0;
        let processors = f64::from(properties.multiprocessors.max(1));
        let (side, parts) = (self.tile.side(), self.parts(depth));
        let tiles = rows.div_ceil(side) * cols.div_ceil(side) * parts;
        let rounds = (tiles as f64 / processors).ceil();
        let area = (side * side) as f64;
        let time = rounds * area * (self.part_depth as f64 + EDGES) / self.tile.efficiency();
        if parts == 1 {
            return time;
        }
        // Partial sums are written and read.
        let bytes = 8.0 * (parts * rows * cols) as f64;
        time + LAUNCH + bytes / processors / BYTES
    }
}

#[cfg(test)]
mod tests;
