//! Where the library is looked for, its interface, and what it refuses. `kernels/nvcc/cublaslt.sh`
//! runs the same tests on NVIDIA's library and header; here the emulator's library is all there is.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use half::bf16;

use super::*;
use crate::cuda::cublaslt::ffi::{CONSTANTS, HeuristicResult};
use crate::cuda::testing::for_each_device;
use crate::cuda::{Buffer, Schedule};

/// Folder of the wheels' packages, with `nvidia/…` in it, that `cublaslt.sh` installs.
const WHEEL: &str = "ANNEAL_CUBLASLT_WHEEL";

fn wheel() -> Option<PathBuf> {
    std::env::var_os(WHEEL).map(PathBuf::from)
}

/// The candidates where the environment has these variables alone.
fn candidates(variables: &[(&str, &Path)]) -> Vec<PathBuf> {
    places::candidates(|name| {
        let found = variables.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| OsString::from(value))
    })
}

#[test]
fn the_newest_is_looked_for_first_and_the_loader_asked_last() {
    let root = std::env::temp_dir().join(format!("anneal-cublaslt-{}", std::process::id()));
    let make = |path: &str| {
        let file = root.join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "").unwrap();
        file
    };
    let wheel = "venv/lib/python3.12/site-packages/nvidia";
    let in_home = make("cuda/lib64/libcublasLt.so.12");
    let in_path = make("path/libcublasLt.so.12");
    let in_wheel = make(&format!("{wheel}/cublas/lib/libcublasLt.so.12"));
    let newest = make(&format!("{wheel}/cu13/lib/libcublasLt.so.13"));
    let found = candidates(&[
        ("CUDA_HOME", &root.join("cuda")),
        ("LD_LIBRARY_PATH", &root.join("path")),
        ("VIRTUAL_ENV", &root.join("venv")),
    ]);
    let ours: Vec<&PathBuf> = found
        .iter()
        .filter(|file| file.starts_with(&root))
        .collect();
    assert_eq!(ours, [&newest, &in_home, &in_path, &in_wheel]);
    let last = [13, 12].map(|version| PathBuf::from(format!("libcublasLt.so.{version}")));
    assert!(found.ends_with(&last), "{found:?}");

    let only = candidates(&[(VARIABLE, &in_path), ("CUDA_HOME", &root.join("cuda"))]);
    assert_eq!(only, [in_path]);
    let folder = root.join("cuda/lib64");
    let only = candidates(&[(VARIABLE, &folder)]);
    assert_eq!(
        only,
        [13, 12].map(|version| folder.join(format!("libcublasLt.so.{version}")))
    );
    fs::remove_dir_all(root).unwrap();
}

#[test]
fn what_is_no_library_is_told() {
    let text = Code::load(Path::new("/nowhere/libcublasLt.so.12")).unwrap_err();
    assert!(text.starts_with("/nowhere/libcublasLt.so.12: "), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    let text = Code::load(Path::new("libm.so.6")).unwrap_err();
    assert_eq!(text, "libm.so.6 has no cublasLtCreate");
}

/// NVIDIA's where it is given, otherwise the emulator's. Of NVIDIA's only the descriptors work
/// without a GPU.
fn code() -> Code {
    let path = wheel().map_or(emulator::CUBLASLT.into(), |packages| {
        packages.join("nvidia/cublas/lib/libcublasLt.so.12")
    });
    Code::load(&path).unwrap()
}

#[test]
fn descriptors_take_what_is_set_and_refuse_other_sizes() {
    let code = code();
    let f = &code.functions;
    let mut matmul = std::ptr::null_mut();
    let (word, long) = (ffi::OP_T, 64u64);
    let (word, long) = ((&raw const word).cast(), (&raw const long).cast());
    // SAFETY: descriptors are written, used and destroyed in this order; values have 8 bytes.
    unsafe {
        let compute = ffi::COMPUTE_32F_FAST_TF32;
        assert_eq!(
            (f.matmul_create)(&raw mut matmul, compute, ffi::TYPE_F32),
            0
        );
        for attribute in [ffi::MATMUL_TRANSA, ffi::MATMUL_TRANSB, ffi::MATMUL_EPILOGUE] {
            assert_eq!((f.matmul_set)(matmul, attribute, word, 4), 0, "{attribute}");
            assert_ne!((f.matmul_set)(matmul, attribute, long, 8), 0, "{attribute}");
        }
        let vectors = [
            ffi::MATMUL_BIAS_POINTER,
            ffi::MATMUL_AUX_POINTER,
            ffi::MATMUL_AUX_LD,
        ];
        for attribute in vectors {
            assert_eq!((f.matmul_set)(matmul, attribute, long, 8), 0, "{attribute}");
            assert_ne!((f.matmul_set)(matmul, attribute, word, 4), 0, "{attribute}");
        }
        assert_eq!((f.matmul_destroy)(matmul), 0);
    }
    assert!(code.version >= VERSION_MIN);
    let text = text_of(f, 15);
    assert!(text.ends_with("(status 15)") && text.len() > 15, "{text}");
}

#[test]
fn preferences_take_what_is_set_and_nothing_is_found_without_a_handle() {
    let code = code();
    let f = &code.functions;
    let [mut matmul, mut layout, mut preference] = [std::ptr::null_mut(); 3];
    let (word, long) = (2u32, 64u64);
    let (word, long) = ((&raw const word).cast(), (&raw const long).cast());
    // SAFETY: as above.
    unsafe {
        let types = (ffi::COMPUTE_32F, ffi::TYPE_F32);
        assert_eq!((f.matmul_create)(&raw mut matmul, types.0, types.1), 0);
        assert_eq!(
            (f.layout_create)(&raw mut layout, ffi::TYPE_BF16, 8, 16, 8),
            0
        );
        assert_eq!((f.preference_create)(&raw mut preference), 0);
        let workspace = ffi::PREFERENCE_WORKSPACE_BYTES;
        assert_eq!((f.preference_set)(preference, workspace, long, 8), 0);
        assert_ne!((f.preference_set)(preference, workspace, word, 4), 0);
        for attribute in [
            ffi::PREFERENCE_REDUCTIONS,
            ffi::PREFERENCE_ALIGNMENT_A,
            ffi::PREFERENCE_ALIGNMENT_B,
            ffi::PREFERENCE_ALIGNMENT_C,
            ffi::PREFERENCE_ALIGNMENT_D,
        ] {
            assert_eq!(
                (f.preference_set)(preference, attribute, word, 4),
                0,
                "{attribute}"
            );
        }
        // Without a handle nothing is found, and that is an error.
        let (mut result, mut count) = (HeuristicResult::NONE, 7);
        let found = (f.heuristic)(
            std::ptr::null_mut(),
            matmul,
            layout,
            layout,
            layout,
            layout,
            preference,
            1,
            &raw mut result,
            &raw mut count,
        );
        assert_ne!(found, 0);
        assert_eq!((f.preference_destroy)(preference), 0);
        assert_eq!((f.layout_destroy)(layout), 0);
        assert_eq!((f.matmul_destroy)(matmul), 0);
    }
}

/// The numbers, sizes and types of ffi.rs as C++ that only NVIDIA's header makes true.
fn assertions() -> String {
    let mut text = "#include <cstddef>\n#include <cublasLt.h>\n".to_owned();
    for (name, value) in CONSTANTS {
        text += &format!("static_assert(int({name}) == {value}, \"{name}\");\n");
    }
    let words = size_of::<ffi::AlgorithmWords>();
    let result = size_of::<HeuristicResult>();
    let workspace = std::mem::offset_of!(HeuristicResult, workspace_bytes);
    let state = std::mem::offset_of!(HeuristicResult, state);
    text += &format!(
        "static_assert(sizeof(cublasLtMatmulAlgo_t) == {words}, \"\");
         using Result = cublasLtMatmulHeuristicResult_t;
         static_assert(sizeof(Result) == {result} && alignof(Result) == 8, \"\");
         static_assert(offsetof(Result, workspaceSize) == {workspace}, \"\");
         static_assert(offsetof(Result, state) == {state}, \"\");
         static_assert(sizeof(cublasStatus_t) == 4 && sizeof(cudaDataType) == 4, \"\");
         static_assert(sizeof(cublasComputeType_t) == 4, \"\");
         static_assert(sizeof(cublasLtMatmulDescAttributes_t) == 4, \"\");
        "
    );
    text + include_str!("signatures.h")
}

#[test]
fn numbers_sizes_and_signatures_are_those_of_the_header() {
    let names: Vec<&str> = CONSTANTS.iter().map(|(name, _)| *name).collect();
    assert!(names.contains(&"CUBLASLT_EPILOGUE_BGRADB"));
    let Some(packages) = wheel() else {
        // What is compiled is at least C++ in which every number has its own name.
        let mut unique = names.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), names.len());
        return;
    };
    let file = std::env::temp_dir().join(format!("anneal-header-{}.cpp", std::process::id()));
    fs::write(&file, assertions()).unwrap();
    let mut command = Command::new(std::env::var_os("CXX").unwrap_or("g++".into()));
    command
        .args(["-std=c++17", "-fsyntax-only", "-Wall", "-Werror"])
        .arg(&file);
    let runtime = std::env::var_os("ANNEAL_CUDA_HEADERS").expect("cublaslt.sh sets both");
    for headers in [packages.join("nvidia/cublas/include"), runtime.into()] {
        command.arg("-isystem").arg(headers);
    }
    let output = command.output().unwrap();
    fs::remove_file(&file).unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
}

const PRODUCT: Product = Product {
    m: 24,
    n: 16,
    k: 32,
    transposed: [true, false],
    compute: Compute::F32,
    epilogue: Epilogue::None,
    alignment: 16,
};

/// Memory whose first element lies at a multiple of what a workspace wants.
fn workspace(device: &Device) -> Buffer<u8> {
    let whole = device.alloc::<u8>(8192 + 256).unwrap();
    let mut parts = (0..256).map(|start| whole.slice(start..start + 8192));
    parts.find(|part| part.is_aligned(256)).unwrap()
}

#[test]
fn a_workspace_that_is_too_small_leaves_out_what_needs_it() {
    let device = Device::emulator(Schedule::default());
    let library = Library::open(&device).unwrap();
    let with = |bytes| {
        library
            .algorithms::<bf16, bf16>(&PRODUCT, bytes, 8)
            .unwrap()
    };
    let needs = 8 * PRODUCT.m * PRODUCT.n;
    assert_eq!(with(needs).len(), with(needs - 1).len() + 1);
    assert_eq!(
        library
            .algorithms::<bf16, bf16>(&PRODUCT, needs, 1)
            .unwrap()
            .len(),
        1
    );
    // And one that was kept is not taken where it has too little.
    let last = *with(needs).last().unwrap();
    assert!(library.takes::<bf16, bf16>(&PRODUCT, &last, needs).unwrap());
    assert!(
        !library
            .takes::<bf16, bf16>(&PRODUCT, &last, needs - 1)
            .unwrap()
    );
    // Nor one of other types, another epilogue, or nobody's.
    assert!(!library.takes::<bf16, f32>(&PRODUCT, &last, needs).unwrap());
    let other = Product {
        epilogue: Epilogue::Bias,
        ..PRODUCT
    };
    assert!(!library.takes::<bf16, bf16>(&other, &last, needs).unwrap());
    let nobodys = Algorithm {
        words: [1; 8],
        workspace_bytes: 0,
    };
    assert!(
        !library
            .takes::<bf16, bf16>(&PRODUCT, &nobodys, needs)
            .unwrap()
    );
    let text = last.describe(&library);
    assert_eq!(text, "algorithm 2, tile 20, stages 0, splits 2");
}

/// Rows that begin at no multiple of 8 elements have no epilogue with a second matrix.
#[test]
fn unaligned_rows_have_no_fused_gelu() {
    let device = Device::emulator(Schedule::default());
    let library = Library::open(&device).unwrap();
    let ways = |m, aux| {
        let epilogue = Epilogue::Gelu { bias: true, aux };
        let product = Product {
            m,
            epilogue,
            ..PRODUCT
        };
        library
            .algorithms::<bf16, bf16>(&product, 0, 8)
            .unwrap()
            .len()
    };
    assert!(ways(24, true) > 0 && ways(20, false) > 0);
    assert_eq!(ways(20, true), 0);
}

#[test]
fn misaligned_and_overlapping_operands_are_refused() {
    for_each_device(|device| {
        let library = Library::open(device).unwrap_or_else(|error| panic!("{error}"));
        let stream = device.stream().unwrap();
        let found = library.algorithms::<bf16, bf16>(&PRODUCT, 8192, 8).unwrap();
        let Product { m, n, k, .. } = PRODUCT;
        let [a, b, d] = [m * k + 8, k * n, m * n].map(|len| {
            let data: Vec<bf16> = crate::cuda::testing::random(len, 1.0, 5);
            device.upload(&data).unwrap()
        });
        let workspace = workspace(device);
        let multiply = |a: &Buffer<bf16>, d: &Buffer<bf16>| {
            let operands = Operands {
                a,
                b: &b,
                c: None,
                d,
                bias: None,
                aux: None,
                workspace: &workspace,
            };
            stream.multiply(&library, &PRODUCT, &found[0], &operands)
        };
        let whole = a.slice(0..m * k);
        multiply(&whole, &d).unwrap();
        stream.synchronize().unwrap();
        // What a GPU does with these is undefined or slow; the emulator's library refuses.
        if device.free_bytes().unwrap().is_none() {
            let text = multiply(&a.slice(1..m * k + 1), &d)
                .unwrap_err()
                .to_string();
            assert!(text.contains("cuBLASLt: cublasLtMatmul: "), "{text}");
            assert!(multiply(&whole, &a.slice(8..8 + m * n)).is_err());
        }
    });
}
