//! The launch layer: what it refuses, and that a graph repeats what was recorded.

use half::bf16;

use super::testing::{for_each_device, random};
use super::{Device, Grid, Schedule};
use crate::gelu;

#[test]
#[expect(unsafe_code, reason = "launches that are refused")]
fn a_launch_that_does_not_fit_the_kernel_is_refused() {
    let device = Device::emulator(Schedule::default());
    let stream = device.stream().unwrap();
    let mut out = device.alloc::<f32>(4).unwrap();
    let x = device.alloc::<bf16>(4).unwrap();
    let grid = Grid::linear(1, 32);
    let refused = |name: &str, grid, args: &[super::Arg]| {
        // SAFETY: nothing is launched.
        let launched = unsafe { stream.launch(name, grid, args) };
        launched.unwrap_err().to_string()
    };
    assert!(refused("none", grid, &[]).ends_with("kernel none does not exist"));
    assert!(refused("gelu_forward_f32", grid, &[]).ends_with("3 arguments expected, got 0"));
    let wrong = [out.arg_mut(), x.arg(), 4u64.into()];
    let message = refused("gelu_forward_f32", grid, &wrong);
    assert!(
        message
            .ends_with("argument 1 must be a buffer to read of f32, got a buffer to read of bf16"),
        "{message}"
    );
    let right = [out.arg_mut(), out.arg(), 4u64.into()];
    let message = refused("gelu_forward_f32", Grid::linear(1, 512), &right);
    assert!(
        message.ends_with("a block has at most 256 threads"),
        "{message}"
    );
    let message = refused("gelu_forward_f32", Grid::linear(0, 32), &right);
    assert!(message.ends_with("a dimension is 0"), "{message}");
}

#[test]
fn a_graph_repeats_what_was_recorded_and_keeps_its_memory() {
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        let x = device.upload(&random::<f32>(37, 2.0, 1)).unwrap();
        let mut out = device.alloc(37).unwrap();
        let graph = stream
            .capture(|stream| gelu::cuda::forward(stream, &mut out, &x))
            .unwrap();
        assert!(
            out.download().unwrap().iter().all(|x| x.is_nan()),
            "it ran while recorded"
        );
        drop(x);
        graph.launch(&stream).unwrap();
        stream.synchronize().unwrap();
        let first = out.download().unwrap();
        assert!(first.iter().all(|x| x.is_finite()));
        out.fill_zero().unwrap();
        graph.launch(&stream).unwrap();
        assert_eq!(out.download().unwrap(), first);
    });
}
