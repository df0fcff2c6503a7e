//! Which data sheet is taken for which name.

use super::{data_sheet, peak_flops};
use crate::engine::measured_peak;
use kernels::cuda::{Device, Schedule};
use kernels::matmul::cuda::products::Products;

#[test]
fn names_as_drivers_tell_them_have_their_rates() {
    for (name, tflops) in [
        ("cuda:0 (Tesla T4)", 65.0),
        ("cuda:0 (Tesla V100-SXM2-16GB)", 125.0),
        ("cuda:0 (NVIDIA A10)", 125.0),
        ("cuda:0 (NVIDIA A10G)", 70.0),
        ("cuda:3 (NVIDIA A100-SXM4-80GB)", 312.0),
        ("cuda:0 (NVIDIA A100-PCIE-40GB)", 312.0),
        ("cuda:0 (NVIDIA L4)", 121.0),
        ("cuda:0 (NVIDIA L40)", 181.0),
        ("cuda:0 (NVIDIA L40S)", 362.0),
        ("cuda:0 (NVIDIA A40)", 149.7),
        ("cuda:0 (NVIDIA RTX A4000)", 76.7),
        ("cuda:0 (NVIDIA RTX A6000)", 154.8),
        ("cuda:0 (NVIDIA RTX 6000 Ada Generation)", 364.2),
        ("cuda:0 (NVIDIA GeForce RTX 3090)", 71.0),
        ("cuda:0 (NVIDIA GeForce RTX 3090 Ti)", 80.0),
        ("cuda:0 (NVIDIA GeForce RTX 4090)", 165.2),
        ("cuda:0 (NVIDIA GeForce RTX 5090)", 209.5),
        ("cuda:0 (NVIDIA H100 80GB HBM3)", 989.0),
        ("cuda:0 (NVIDIA H100 PCIe)", 756.0),
        ("cuda:0 (NVIDIA H100 NVL)", 835.0),
        ("cuda:0 (NVIDIA H200)", 989.0),
        ("cuda:0 (NVIDIA GH200 480GB)", 989.0),
        ("cuda:0 (NVIDIA B200)", 2250.0),
        ("cuda:0 (NVIDIA GB200)", 2500.0),
    ] {
        assert_eq!(data_sheet(name), Some(tflops * 1e12), "{name}");
    }
    // Others, whose names begin or go on like a known one's.
    for name in [
        "cuda:0 (NVIDIA RTX A1000)",
        "cuda:0 (NVIDIA T400)",
        "cuda:0 (NVIDIA GeForce RTX 4090 Laptop GPU)",
        "cuda:0 (NVIDIA GeForce RTX 4090 D)",
        "cuda:0 (NVIDIA GeForce RTX 2080 Ti)",
        "cuda:0 (NVIDIA B300)",
    ] {
        assert_eq!(data_sheet(name), None, "{name}");
    }
}

#[test]
fn the_emulators_peak_is_the_hosts() {
    let device = Device::emulator(Schedule::default());
    let products = Products::<half::bf16>::new(&device, None, false).unwrap();
    let peak = peak_flops(&device, &products).unwrap();
    let host = measured_peak();
    assert!(
        peak > host / 20.0 && peak < host * 20.0,
        "{peak:e} {host:e}"
    );
}
