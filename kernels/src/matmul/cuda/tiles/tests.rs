//! The choices for shapes of GPT-2 and for tiny ones.

use super::{Choice, DEPTH, PARTS_MAX, Tile};
use crate::cuda::Properties;

fn device(multiprocessors: u32) -> Properties {
    Properties {
        name: "test".to_owned(),
        compute_capability: (8, 0),
        shared_bytes_max: 99 << 10,
        multiprocessors,
    }
}

#[test]
fn big_products_take_the_large_tile_and_tiny_ones_the_small() {
    let device = device(108);
    for cols in [768, 2304, 3072, 50304] {
        let choice = Choice::of(16384, cols, 768, false, &device);
        assert_eq!(choice.tile, Tile::Large, "{cols}");
        assert_eq!(choice.parts(768), 1);
    }
    for (rows, cols) in [(1, 1), (64, 384), (256, 384)] {
        assert_eq!(
            Choice::of(rows, cols, 384, false, &device).tile,
            Tile::Small
        );
    }
}

#[test]
fn long_sums_of_few_tiles_are_cut_in_parts_that_fill_the_device() {
    let device = device(132);
    let choice = Choice::of(768, 768, 65536, true, &device);
    let parts = choice.parts(65536);
    assert!(parts > 1 && parts <= PARTS_MAX, "{choice:?}");
    let side = choice.tile.side();
    assert!((768 / side).pow(2) * parts >= 120, "{choice:?}");
    // A product that fills the device by itself is not cut.
    assert_eq!(Choice::of(50304, 768, 8192, true, &device).parts(8192), 1);
    assert_eq!(Choice::of(768, 768, 65536, false, &device).parts(65536), 1);
}

#[test]
fn parts_are_whole_steps_that_cover_the_depth_and_none_is_empty() {
    for multiprocessors in [1, 4, 132] {
        for depth in [0, 1, 31, 32, 33, 511, 512, 1000, 4097, 65536] {
            let choice = Choice::of(200, 100, depth, true, &device(multiprocessors));
            let parts = choice.parts(depth);
            assert_eq!(choice.part_depth % DEPTH, 0);
            assert!(choice.part_depth * parts >= depth);
            assert!(depth == 0 || choice.part_depth * (parts - 1) < depth);
        }
    }
}

#[test]
fn blocks_fit_every_device() {
    let mut turing = device(40);
    turing.compute_capability = (7, 5);
    for tile in [Tile::Large, Tile::Small] {
        for is_16_bit in [true, false] {
            assert!(tile.shared_bytes(is_16_bit, &device(108)) <= 48 << 10);
            // Two blocks at a time in the 64 KiB of sm_75.
            assert!(!is_16_bit || tile.shared_bytes(true, &turing) <= 32 << 10);
        }
    }
}
