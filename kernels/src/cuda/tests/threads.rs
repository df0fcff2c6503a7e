//! Captures and calls that concern the whole device, on different threads: each waits for the
//! other's end, on whatever thread it is.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::load_gelu;
use crate::cuda::testing::for_each_device;
use crate::cuda::{CudaError, Device};
use crate::gelu;

/// Long enough for a call that does not wait to be over.
const WHILE: Duration = Duration::from_millis(20);

type Call = fn(&Device) -> Result<(), CudaError>;

const CALLS: [(&str, Call); 6] = [
    ("an allocation", |device| device.alloc::<f32>(8).map(drop)),
    ("pinned memory", |device| {
        device.host_buffer(&[0.0f32; 8]).map(drop)
    }),
    ("zeros", |device| device.alloc_zeros::<f32>(8).map(drop)),
    ("a download", |device| {
        device.upload(&[1.0f32])?.download().map(drop)
    }),
    ("synchronize", |device| device.stream()?.synchronize()),
    ("a first launch", |device| {
        let x = device.upload(&[1.0f32])?;
        gelu::cuda::forward_tanh(&device.stream()?, &mut device.alloc(1)?, &x)
    }),
];

#[test]
fn what_concerns_the_whole_device_waits_for_captures_of_other_threads() {
    for_each_device(|device| {
        for (what, call) in CALLS {
            let stream = device.stream().unwrap();
            load_gelu(&stream);
            let x = device.upload(&[1.0f32]).unwrap();
            let mut out = device.alloc::<f32>(1).unwrap();
            let recorded = AtomicBool::new(false);
            thread::scope(|scope| {
                let (done, is_done) = mpsc::channel();
                let graph = stream.capture(|stream| {
                    let recorded = &recorded;
                    scope.spawn(move || {
                        call(device).unwrap();
                        done.send(recorded.load(Ordering::SeqCst)).unwrap();
                    });
                    let early = is_done.recv_timeout(WHILE);
                    assert!(early.is_err(), "{what} did not wait");
                    gelu::cuda::forward(stream, &mut out, &x)?;
                    recorded.store(true, Ordering::SeqCst);
                    Ok(())
                });
                graph.unwrap().launch(&stream).unwrap();
                assert!(is_done.recv().unwrap(), "{what} did not wait");
            });
        }
    });
}

#[test]
fn a_capture_waits_for_what_concerns_the_whole_device() {
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        let alone = device.device_wide("a test").unwrap();
        thread::scope(|scope| {
            let (begun, has_begun) = mpsc::channel();
            scope.spawn(move || {
                let graph = stream.capture(|_| {
                    begun.send(()).unwrap();
                    Ok(())
                });
                assert!(graph.unwrap().is_empty());
            });
            assert!(has_begun.recv_timeout(WHILE).is_err(), "it did not wait");
            drop(alone);
            has_begun.recv().unwrap();
        });
    });
}

/// Whatever ends a capture, others go on.
#[test]
fn a_capture_that_fails_holds_nothing_up() {
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        let failed = stream.capture(|_| device.alloc::<f32>(1).map(drop));
        assert!(failed.is_err());
        device.alloc::<f32>(1).unwrap();
        stream.synchronize().unwrap();
    });
}
