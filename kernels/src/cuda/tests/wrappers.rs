//! The wrappers of device.cuh against what PTX and the CPU rooms say they do.

#![expect(unsafe_code, reason = "launches of the micro-kernels")]

use half::{bf16, f16};

use super::super::testing::{assert_near, for_each_device, random, widen};
use super::super::{Device, Float, Grid};
use crate::dropout::Dropout;
use crate::philox::{Philox, Stream as RandomStream};

fn multiply<T: Float>(device: &Device) {
    let stream = device.stream().unwrap();
    let (a, b) = (random::<T>(256, 1.0, 1), random::<T>(128, 1.0, 2));
    let mut out = device.upload(&random::<f32>(128, 1.0, 3)).unwrap();
    let mut expected = widen(&out.download().unwrap());
    for (i, expected) in expected.iter_mut().enumerate() {
        let (row, column) = (i / 8, i % 8);
        for k in 0..16 {
            *expected += a[row * 16 + k].to_f64() * b[column * 16 + k].to_f64();
        }
    }
    let (a, b) = (device.upload(&a).unwrap(), device.upload(&b).unwrap());
    let args = [out.arg_mut(), a.arg(), b.arg()];
    let kernel = T::kernel("conformance_multiply");
    // SAFETY: the buffers have the 128, 256 and 128 elements that the kernel uses.
    unsafe { stream.launch(&kernel, Grid::linear(1, 32), &args) }.unwrap();
    // Products are exact in f32; sixteen sums are rounded.
    assert_near(&kernel, &out.download().unwrap(), &expected, 1e-6);
}

#[test]
fn a_warp_multiplies_matrices() {
    for_each_device(|device| {
        multiply::<f16>(device);
        if device.properties().compute_capability >= (8, 0) {
            multiply::<bf16>(device);
        }
    });
}

#[test]
fn load_matrix_gives_each_lane_its_elements() {
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        let elements: Vec<f16> = (0..256).map(f16::from_bits).collect();
        let mut out = device.alloc::<u32>(256).unwrap();
        let input = device.upload(&elements).unwrap();
        let args = [out.arg_mut(), input.arg()];
        let grid = Grid::linear(1, 32).with_shared(512);
        // SAFETY: the kernel reads 256 elements, writes 256 and uses 512 bytes of shared memory.
        unsafe { stream.launch("conformance_load_matrix_f16", grid, &args) }.unwrap();
        let out = out.download().unwrap();
        for matrix in 0..4u32 {
            for lane in 0..32 {
                let (group, pair) = (lane / 4, lane % 4 * 2);
                let element = |row, column| 64 * matrix + 8 * row + column;
                let plain = element(group, pair) | element(group, pair + 1) << 16;
                let transposed = element(pair, group) | element(pair + 1, group) << 16;
                assert_eq!(out[(matrix * 32 + lane) as usize], plain);
                assert_eq!(out[((4 + matrix) * 32 + lane) as usize], transposed);
            }
        }
    });
}

#[test]
fn a_block_reduces_to_the_same_in_every_thread() {
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        for threads in [32u32, 96, 1024] {
            let input = random::<f32>(3 * threads as usize, 1.0, threads.into());
            let mut sums = device.alloc::<f32>(3).unwrap();
            let mut maxima = device.alloc::<f32>(3).unwrap();
            let on_device = device.upload(&input).unwrap();
            let args = [sums.arg_mut(), maxima.arg_mut(), on_device.arg()];
            // SAFETY: the kernel reads an element for each thread and writes two for each block.
            unsafe { stream.launch("conformance_reduce_f32", Grid::linear(3, threads), &args) }
                .unwrap();
            let blocks = || input.chunks(threads as usize);
            let expected: Vec<f64> = blocks().map(|x| widen(x).iter().sum()).collect();
            assert_near("sums", &sums.download().unwrap(), &expected, 1e-5);
            let expected: Vec<f32> = blocks()
                .map(|x| x.iter().copied().fold(f32::MIN, f32::max))
                .collect();
            assert_eq!(maxima.download().unwrap(), expected);
        }
    });
}

#[test]
fn dropout_masks_are_those_of_the_cpu() {
    let dropout = Dropout {
        p: 0.3,
        philox: Philox::new(1337, RandomStream::Dropout),
        place: 5,
        at: [77, 2],
    };
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        for first in [0usize, 3, (1 << 34) - 1000] {
            let n = 700;
            let mut expected = vec![f32::NAN; n];
            dropout.factors(first, &mut expected);
            let mut out = device.alloc::<f32>(n).unwrap();
            let at = device.upload(&dropout.at).unwrap();
            let mut args = vec![out.arg_mut()];
            args.extend(dropout.args(&at));
            args.extend([(first as u64).into(), (n as u64).into()]);
            // SAFETY: the kernel reads two words of `at` and writes n elements.
            unsafe { stream.launch("conformance_dropout_f32", Grid::linear(3, 256), &args) }
                .unwrap();
            assert_eq!(out.download().unwrap(), expected);
        }
    });
}

/// The micro-kernels of the room `conformance`, against what PTX says.
fn run_words(device: &Device, kernel: &str, input: &[u32], output_words: usize) -> Vec<u32> {
    let stream = device.stream().unwrap();
    let input = device.upload(input).unwrap();
    let mut out = device.alloc::<u32>(output_words).unwrap();
    let args = [out.arg_mut(), input.arg()];
    // SAFETY: the callers give each kernel the words that it reads and writes.
    unsafe { stream.launch(kernel, Grid::linear(1, 32), &args) }.unwrap();
    out.download().unwrap()
}

#[test]
fn load_matrix_takes_one_two_and_four_matrices() {
    // Row r is words 4 r to 4 r + 3; its element e is 8 r + e.
    let input: Vec<u32> = (0..128).map(|i| (2 * i) | ((2 * i + 1) << 16)).collect();
    for_each_device(|device| {
        for (matrices, suffix) in [1, 2, 4]
            .into_iter()
            .flat_map(|n| [(n, ""), (n, "_transposed")])
        {
            let kernel = format!("conformance_load_matrix_{matrices}{suffix}");
            let out = run_words(device, &kernel, &input, 32 * matrices as usize);
            for (i, &word) in out.iter().enumerate() {
                let (lane, matrix) = (i as u32 / matrices, i as u32 % matrices);
                // The kernel's lane l gives the address of row (5 l + 3) % 32.
                let element = |row, column| ((8 * matrix + row) * 5 + 3) % 32 * 8 + column;
                let (group, pair) = (lane / 4, lane % 4 * 2);
                let expected = match suffix {
                    "" => element(group, pair) | element(group, pair + 1) << 16,
                    _ => element(pair, group) | element(pair + 1, group) << 16,
                };
                assert_eq!(word, expected, "{kernel}, lane {lane}, matrix {matrix}");
            }
        }
    });
}

/// d (16, 8) = c (16, 8) + a (16, 8) b (8, 8), its elements where PTX ISA 8.7, 9.7.14.5.7 has them.
fn multiply_k8<T: Float>(device: &Device, bits: impl Fn(T) -> u16) {
    let (a, b) = (random::<T>(128, 1.0, 4), random::<T>(64, 1.0, 5));
    let c = random::<f32>(128, 1.0, 6);
    let pack = |low: T, high: T| u32::from(bits(low)) | u32::from(bits(high)) << 16;
    let mut input = Vec::new();
    // Of each lane's d: rows group and group + 8, columns pair and the next.
    let mut places = Vec::new();
    for lane in 0..32 {
        let (group, pair) = (lane / 4, lane % 4 * 2);
        places.extend([(group, pair), (group, pair + 1)]);
        places.extend([(group + 8, pair), (group + 8, pair + 1)]);
        let own = &places[4 * lane..];
        input.extend(
            own.iter()
                .map(|(row, column)| c[row * 8 + column].to_bits()),
        );
        for row in [group, group + 8] {
            input.push(pack(a[row * 8 + pair], a[row * 8 + pair + 1]));
        }
        input.push(pack(b[pair * 8 + group], b[(pair + 1) * 8 + group]));
    }
    let kernel = T::kernel("conformance_mma_m16n8k8");
    let out = run_words(device, &kernel, &input, 128);
    let out: Vec<f32> = out.into_iter().map(f32::from_bits).collect();
    let product = |row: usize, column: usize| -> f64 {
        (0..8)
            .map(|k| a[row * 8 + k].to_f64() * b[k * 8 + column].to_f64())
            .sum()
    };
    let expected: Vec<f64> = places
        .iter()
        .map(|&(row, column)| f64::from(c[row * 8 + column]) + product(row, column))
        .collect();
    assert_near(&kernel, &out, &expected, 1e-6);
}

#[test]
fn a_warp_multiplies_matrices_of_eight_columns() {
    for_each_device(|device| {
        multiply_k8::<f16>(device, f16::to_bits);
        if device.properties().compute_capability >= (8, 0) {
            multiply_k8::<bf16>(device, bf16::to_bits);
        }
    });
}
