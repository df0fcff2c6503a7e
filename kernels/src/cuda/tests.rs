//! The launch layer: what it refuses, and that a graph repeats what was recorded.

mod threads;
mod wrappers;

use half::bf16;

use super::cublaslt::Library;
use super::testing::{for_each_device, random};
use super::{CudaError, Device, Grid, HostBuffer, Order, Schedule, Stream};
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

/// The kernel that most tests record, loaded as it has to be before.
fn load_gelu(stream: &Stream) {
    let x = stream.device().upload(&[1.0]).unwrap();
    let mut out = stream.device().alloc::<f32>(1).unwrap();
    gelu::cuda::forward(stream, &mut out, &x).unwrap();
}

#[test]
fn a_graph_repeats_what_was_recorded_and_keeps_its_memory() {
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        load_gelu(&stream);
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

#[test]
fn copies_and_zeros_run_in_the_order_of_the_stream() {
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        let x = random::<f32>(37, 2.0, 1);
        let mut on_host = device.host_buffer(&x).unwrap();
        let (mut a, mut b) = (device.alloc(37).unwrap(), device.alloc(37).unwrap());
        let mut back = device.host_buffer(&[0.0; 37]).unwrap();
        let once = |stream: &Stream, on_host: &_, back: &mut _| {
            stream.upload(&mut a, on_host)?;
            stream.copy(&mut b, &a)?;
            stream.zero(&mut b.slice(5..7))?;
            stream.download(back, &b)
        };
        let mut expected = x.clone();
        expected[5..7].fill(0.0);

        let mut once = once;
        once(&stream, &on_host, &mut back).unwrap();
        stream.synchronize().unwrap();
        assert_eq!(back.read(), expected);

        // A graph copies what the host's memory holds when it runs.
        back.write(&[0.0; 37]);
        let graph = stream
            .capture(|stream| once(stream, &on_host, &mut back))
            .unwrap();
        assert_eq!(graph.len(), 4);
        assert_eq!(back.read(), [0.0; 37]);
        let doubled: Vec<f32> = x.iter().map(|x| 2.0 * x).collect();
        on_host.write(&doubled);
        graph.launch(&stream).unwrap();
        stream.synchronize().unwrap();
        let expected: Vec<f32> = expected.iter().map(|x| 2.0 * x).collect();
        assert_eq!(back.read(), expected);
    });
}

#[test]
fn streams_copy_to_ordinary_memory_as_well() {
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        let x = random::<f32>(1001, 2.0, 1);
        let on_device = device.upload(&x).unwrap();
        let mut back = HostBuffer::ordinary_zeros(x.len());
        assert!(back.read().iter().all(|&x: &f32| x == 0.0));
        stream.download(&mut back, &on_device).unwrap();
        stream.synchronize().unwrap();
        assert_eq!(back.read(), x);
        assert_eq!(
            device.host_zeros::<u32>(3).unwrap().read(),
            [0; 3],
            "pinned"
        );
    });
}

#[test]
fn the_emulator_refuses_host_memory_beyond_its_limit() {
    let device = Device::emulator(Schedule::default()).with_pinned_bytes_max(16);
    assert!(device.host_zeros::<f32>(4).is_ok());
    let refused = device.host_zeros::<f32>(5).unwrap_err().to_string();
    assert!(refused.ends_with("no memory for 20 bytes"), "{refused}");
}

/// y = gelu(x) on one stream, z = gelu(y) on another, which waits for the first if told so.
fn two_streams(device: &Device, waits: bool) -> Vec<f32> {
    let (main, side) = (device.stream().unwrap(), device.stream().unwrap());
    load_gelu(&main);
    let x = device.upload(&random::<f32>(300, 2.0, 1)).unwrap();
    let (mut y, mut z) = (device.alloc(300).unwrap(), device.alloc(300).unwrap());
    let graph = main
        .capture(|main| {
            side.wait_for(main)?;
            gelu::cuda::forward(main, &mut y, &x)?;
            if waits {
                side.wait_for(main)?;
            }
            gelu::cuda::forward(&side, &mut z, &y)?;
            main.wait_for(&side)
        })
        .unwrap();
    graph.launch(&main).unwrap();
    main.synchronize().unwrap();
    z.download().unwrap()
}

#[test]
fn streams_that_wait_for_each_other_are_captured_in_order() {
    let mut first = None;
    for_each_device(|device| {
        let z = two_streams(device, true);
        assert!(z.iter().all(|z| z.is_finite()));
        assert_eq!(*first.get_or_insert_with(|| z.clone()), z);
    });
}

#[test]
fn a_missing_wait_between_branches_shows_in_some_schedule() {
    let caught = |order, seed| {
        let device = Device::emulator(Schedule {
            order,
            seed,
            ..Schedule::default()
        });
        two_streams(&device, false).iter().any(|z| z.is_nan())
    };
    assert!(!caught(Order::Forward, 1));
    assert!(caught(Order::Reverse, 1));
    assert!((0..16).any(|seed| caught(Order::Random, seed)));
}

#[test]
fn events_order_streams_outside_captures_and_tell_the_time() {
    for_each_device(|device| {
        let (main, side) = (device.stream().unwrap(), device.stream().unwrap());
        let x = device.upload(&random::<f32>(300, 2.0, 1)).unwrap();
        let (mut y, mut z) = (device.alloc(300).unwrap(), device.alloc(300).unwrap());
        let start = main.record().unwrap();
        gelu::cuda::forward(&main, &mut y, &x).unwrap();
        side.wait_for(&main).unwrap();
        gelu::cuda::forward(&side, &mut z, &y).unwrap();
        main.wait_for(&side).unwrap();
        let end = main.record().unwrap();
        main.synchronize().unwrap();
        assert!(z.download().unwrap().iter().all(|z: &f32| z.is_finite()));
        assert!(end.milliseconds_since(&start).unwrap() > 0.0);
    });
}

fn ends_with(result: Result<(), CudaError>, text: &str) {
    let message = result.unwrap_err().to_string();
    assert!(message.ends_with(text), "{message}");
}

#[test]
fn work_that_nobody_waited_for_cannot_be_recorded() {
    for_each_device(|device| {
        let (main, side) = (device.stream().unwrap(), device.stream().unwrap());
        load_gelu(&main);
        let x = device.upload(&random::<f32>(8, 2.0, 1)).unwrap();
        let mut y = device.alloc(8).unwrap();
        let graph = main.capture(|main| {
            side.wait_for(main)?;
            gelu::cuda::forward(&side, &mut y, &x)
        });
        ends_with(
            graph.map(drop),
            "1 pieces of other streams' work were not waited for",
        );
        // The other stream has left the capture, and both work.
        gelu::cuda::forward(&side, &mut y, &x).unwrap();
        side.synchronize().unwrap();
        assert!(y.download().unwrap().iter().all(|y: &f32| y.is_finite()));
    });
}

#[test]
fn what_a_capture_cannot_record_is_refused() {
    for_each_device(|device| {
        let (main, side) = (device.stream().unwrap(), device.stream().unwrap());
        load_gelu(&main);
        let mut x = device.upload(&random::<f32>(8, 2.0, 1)).unwrap();
        let mut y = device.alloc(8).unwrap();
        let outside = side.record().unwrap();
        let mut inside = None;
        let graph = main.capture(|main| {
            ends_with(
                main.wait(&outside),
                "the event was recorded outside the capture",
            );
            ends_with(
                device.alloc::<f32>(8).map(drop),
                "an allocation cannot be recorded",
            );
            ends_with(
                x.upload(&[0.0; 8]),
                "an upload from a slice cannot be recorded",
            );
            ends_with(
                x.download().map(drop),
                "a download to a vector cannot be recorded",
            );
            ends_with(x.fill_zero(), "fill_zero cannot be recorded");
            ends_with(
                device.host_buffer(&[0.0f32; 8]).map(drop),
                "an allocation cannot be recorded",
            );
            ends_with(side.synchronize(), "synchronize cannot be recorded");
            ends_with(
                outside.synchronize(),
                "waiting for an event cannot be recorded",
            );
            ends_with(
                Library::open(device).map(drop),
                "loading a library cannot be recorded",
            );
            // One that nothing here has launched, on a stream that records and on one that does
            // not: either would load it.
            for stream in [main, &side] {
                ends_with(
                    gelu::cuda::forward_tanh(stream, &mut y, &x),
                    "the first launch of gelu_forward_tanh_f32, which loads it, cannot be recorded",
                );
            }
            inside = Some(main.record()?);
            main.zero(&mut x)
        });
        let graph = graph.unwrap();
        let ended = side.wait(&inside.unwrap());
        ends_with(ended, "the event belongs to a capture that has ended");
        let nested = main.capture(|main| graph.launch(main));
        ends_with(nested.map(drop), "a graph cannot be recorded into another");
    });
}
