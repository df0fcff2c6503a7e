//! What is said where there is no driver, or one that will not do.

use super::super::{Device, Properties};
use super::{check_compute_capability, check_version};

/// With a GPU it opens; without, it says so in one line and a hint, and nothing panics.
#[test]
fn opening_a_device_works_or_says_what_is_missing() {
    match Device::cuda(0) {
        Ok(device) => assert!(device.name().starts_with("cuda:0 ("), "{}", device.name()),
        Err(error) => {
            let text = error.to_string();
            let (line, hint) = text.split_once('\n').expect(&text);
            assert!(line.starts_with("cuda: "), "{text}");
            assert!(hint.starts_with("hint: ") && !hint.contains('\n'), "{text}");
        }
    }
}

#[test]
fn a_gpu_that_is_not_there_is_an_error() {
    let text = Device::cuda(1000).unwrap_err().to_string();
    let expected = [
        "no GPU 1000",
        "libcuda.so.1 was not found",
        "failed to start",
    ];
    assert!(expected.iter().any(|part| text.contains(part)), "{text}");
}

#[test]
fn an_old_driver_is_named() {
    let text = check_version(11_080).unwrap_err().to_string();
    assert!(text.starts_with("cuda: the driver is of CUDA 11.8, expected 12.0 or later\nhint: "));
    assert!(check_version(12_000).is_ok());
}

#[test]
fn an_old_gpu_is_named() {
    let mut properties = Properties {
        name: "cuda:0 (Tesla V100)".to_owned(),
        compute_capability: (7, 0),
        shared_bytes_max: 96 << 10,
        multiprocessors: 80,
    };
    let text = check_compute_capability(&properties)
        .unwrap_err()
        .to_string();
    assert!(text.starts_with("cuda:0 (Tesla V100): compute capability 7.0, expected 7.5"));
    properties.compute_capability = (7, 5);
    assert!(check_compute_capability(&properties).is_ok());
}

#[test]
fn no_cuda_library_is_linked() {
    let program = std::env::current_exe().unwrap();
    let output = std::process::Command::new("ldd").arg(program).output();
    let output = output.expect("ldd comes with the C library");
    let libraries = String::from_utf8(output.stdout).unwrap();
    assert!(libraries.contains("libc.so"), "{libraries}");
    for name in ["libcu", "libnv", "nvidia"] {
        assert!(!libraries.contains(name), "{libraries}");
    }
}
