//! cuBLASLt's binary interface: numbers and layouts of its header, and the functions that are
//! called, by their names. Used by this folder; its tests hold it to NVIDIA's header, functions by
//! `signatures.h`.

use std::ffi::{c_char, c_int, c_void};

use libloading::Library;

macro_rules! constants {
    ($($name:ident = $value:literal as $header:literal;)*) => {
        $(pub(super) const $name: i32 = $value;)*
        /// Each number with its name in the header.
        #[cfg(test)]
        pub(super) const CONSTANTS: &[(&str, i32)] = &[$(($header, $value)),*];
    };
}

constants! {
    SUCCESS = 0 as "CUBLAS_STATUS_SUCCESS";
    NOT_SUPPORTED = 15 as "CUBLAS_STATUS_NOT_SUPPORTED";
    TYPE_F32 = 0 as "CUDA_R_32F";
    TYPE_F16 = 2 as "CUDA_R_16F";
    TYPE_BF16 = 14 as "CUDA_R_16BF";
    COMPUTE_32F = 68 as "CUBLAS_COMPUTE_32F";
    COMPUTE_32F_FAST_TF32 = 77 as "CUBLAS_COMPUTE_32F_FAST_TF32";
    OP_N = 0 as "CUBLAS_OP_N";
    OP_T = 1 as "CUBLAS_OP_T";
    MATMUL_TRANSA = 3 as "CUBLASLT_MATMUL_DESC_TRANSA";
    MATMUL_TRANSB = 4 as "CUBLASLT_MATMUL_DESC_TRANSB";
    MATMUL_EPILOGUE = 7 as "CUBLASLT_MATMUL_DESC_EPILOGUE";
    MATMUL_BIAS_POINTER = 8 as "CUBLASLT_MATMUL_DESC_BIAS_POINTER";
    MATMUL_AUX_POINTER = 11 as "CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER";
    MATMUL_AUX_LD = 12 as "CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD";
    EPILOGUE_DEFAULT = 1 as "CUBLASLT_EPILOGUE_DEFAULT";
    EPILOGUE_BIAS = 4 as "CUBLASLT_EPILOGUE_BIAS";
    EPILOGUE_GELU = 32 as "CUBLASLT_EPILOGUE_GELU";
    EPILOGUE_GELU_BIAS = 36 as "CUBLASLT_EPILOGUE_GELU_BIAS";
    EPILOGUE_GELU_AUX = 160 as "CUBLASLT_EPILOGUE_GELU_AUX";
    EPILOGUE_GELU_AUX_BIAS = 164 as "CUBLASLT_EPILOGUE_GELU_AUX_BIAS";
    EPILOGUE_DGELU = 192 as "CUBLASLT_EPILOGUE_DGELU";
    EPILOGUE_BGRADB = 512 as "CUBLASLT_EPILOGUE_BGRADB";
    PREFERENCE_WORKSPACE_BYTES = 1 as "CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES";
    PREFERENCE_REDUCTIONS = 3 as "CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK";
    PREFERENCE_ALIGNMENT_A = 5 as "CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES";
    PREFERENCE_ALIGNMENT_B = 6 as "CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES";
    PREFERENCE_ALIGNMENT_C = 7 as "CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES";
    PREFERENCE_ALIGNMENT_D = 8 as "CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES";
    REDUCTION_COMPUTE_TYPE = 2 as "CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE";
    CONFIG_ID = 0 as "CUBLASLT_ALGO_CONFIG_ID";
    CONFIG_TILE = 1 as "CUBLASLT_ALGO_CONFIG_TILE_ID";
    CONFIG_SPLITS = 2 as "CUBLASLT_ALGO_CONFIG_SPLITK_NUM";
    CONFIG_STAGES = 6 as "CUBLASLT_ALGO_CONFIG_STAGES_ID";
}

/// `cublasLtMatmulAlgo_t`: plain bits, which may be kept for the same version of the library.
pub(super) type AlgorithmWords = [u64; 8];

/// `cublasLtMatmulHeuristicResult_t`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct HeuristicResult {
    pub(super) algorithm: AlgorithmWords,
    pub(super) workspace_bytes: usize,
    pub(super) state: c_int,
    pub(super) waves: f32,
    pub(super) reserved: [c_int; 4],
}

impl HeuristicResult {
    pub(super) const NONE: Self = Self {
        algorithm: [0; 8],
        workspace_bytes: 0,
        state: NOT_SUPPORTED,
        waves: 0.0,
        reserved: [0; 4],
    };
}

/// Of cuBLASLt's descriptors and its handle; never looked into.
pub(super) type Opaque = *mut c_void;

macro_rules! functions {
    ($($field:ident: $name:literal = fn($($argument:ty),*) -> $result:ty;)*) => {
        /// The functions that are called.
        #[derive(Debug)]
        pub(super) struct Functions {
            $(pub(super) $field: unsafe extern "C" fn($($argument),*) -> $result,)*
        }

        impl Functions {
            /// Those of a library that is loaded; the first name that it lacks otherwise.
            pub(super) fn of(library: &Library) -> Result<Self, &'static str> {
                $(
                    // SAFETY: the type is that of the function in NVIDIA's header.
                    let $field = unsafe {
                        library.get::<unsafe extern "C" fn($($argument),*) -> $result>($name)
                    };
                    let $field = *$field.map_err(|_| $name)?;
                )*
                Ok(Self { $($field),* })
            }
        }
    };
}

functions! {
    create: "cublasLtCreate" = fn(*mut Opaque) -> c_int;
    destroy: "cublasLtDestroy" = fn(Opaque) -> c_int;
    version: "cublasLtGetVersion" = fn() -> usize;
    status_string: "cublasLtGetStatusString" = fn(c_int) -> *const c_char;
    matmul_create: "cublasLtMatmulDescCreate" = fn(*mut Opaque, c_int, c_int) -> c_int;
    matmul_destroy: "cublasLtMatmulDescDestroy" = fn(Opaque) -> c_int;
    matmul_set: "cublasLtMatmulDescSetAttribute" =
        fn(Opaque, c_int, *const c_void, usize) -> c_int;
    layout_create: "cublasLtMatrixLayoutCreate" =
        fn(*mut Opaque, c_int, u64, u64, i64) -> c_int;
    layout_destroy: "cublasLtMatrixLayoutDestroy" = fn(Opaque) -> c_int;
    preference_create: "cublasLtMatmulPreferenceCreate" = fn(*mut Opaque) -> c_int;
    preference_destroy: "cublasLtMatmulPreferenceDestroy" = fn(Opaque) -> c_int;
    preference_set: "cublasLtMatmulPreferenceSetAttribute" =
        fn(Opaque, c_int, *const c_void, usize) -> c_int;
    heuristic: "cublasLtMatmulAlgoGetHeuristic" =
        fn(
            Opaque, Opaque, Opaque, Opaque, Opaque, Opaque, Opaque, c_int, *mut HeuristicResult,
            *mut c_int
        ) -> c_int;
    check: "cublasLtMatmulAlgoCheck" =
        fn(
            Opaque, Opaque, Opaque, Opaque, Opaque, Opaque, *const AlgorithmWords,
            *mut HeuristicResult
        ) -> c_int;
    config: "cublasLtMatmulAlgoConfigGetAttribute" =
        fn(*const AlgorithmWords, c_int, *mut c_void, usize, *mut usize) -> c_int;
    matmul: "cublasLtMatmul" =
        fn(
            Opaque, Opaque, *const f32, *const c_void, Opaque, *const c_void, Opaque, *const f32,
            *const c_void, Opaque, *mut c_void, Opaque, *const AlgorithmWords, *mut c_void, usize,
            *mut c_void
        ) -> c_int;
}
