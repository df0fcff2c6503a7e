// The types of the functions in ffi.rs, as C++ that only NVIDIA's cublasLt.h makes true. Compiled
// by the test of that file, after the header.
#include <cstdint>
#include <type_traits>

#define SAME(function, ...)                                                                      \
    static_assert(std::is_same<decltype(&function), __VA_ARGS__>::value, #function)

// Enumerations and descriptors pass as integers of 4 bytes and as pointers.
using Status = cublasStatus_t;
using Handle = cublasLtHandle_t;
using Matmul = cublasLtMatmulDesc_t;
using Layout = cublasLtMatrixLayout_t;
using Preference = cublasLtMatmulPreference_t;
using Words = cublasLtMatmulAlgo_t;
using Found = cublasLtMatmulHeuristicResult_t;
static_assert(std::is_pointer<Handle>::value && std::is_pointer<Matmul>::value, "");
static_assert(std::is_pointer<Layout>::value && std::is_pointer<Preference>::value, "");
static_assert(std::is_pointer<cudaStream_t>::value && sizeof(size_t) == 8, "");

SAME(cublasLtCreate, Status (*)(Handle*));
SAME(cublasLtDestroy, Status (*)(Handle));
SAME(cublasLtGetVersion, size_t (*)());
SAME(cublasLtGetStatusString, const char* (*)(Status));
SAME(cublasLtMatmulDescCreate, Status (*)(Matmul*, cublasComputeType_t, cudaDataType_t));
SAME(cublasLtMatmulDescDestroy, Status (*)(Matmul));
SAME(cublasLtMatmulDescSetAttribute,
     Status (*)(Matmul, cublasLtMatmulDescAttributes_t, const void*, size_t));
SAME(cublasLtMatrixLayoutCreate, Status (*)(Layout*, cudaDataType, uint64_t, uint64_t, int64_t));
SAME(cublasLtMatrixLayoutDestroy, Status (*)(Layout));
SAME(cublasLtMatmulPreferenceCreate, Status (*)(Preference*));
SAME(cublasLtMatmulPreferenceDestroy, Status (*)(Preference));
SAME(cublasLtMatmulPreferenceSetAttribute,
     Status (*)(Preference, cublasLtMatmulPreferenceAttributes_t, const void*, size_t));
SAME(cublasLtMatmulAlgoGetHeuristic, Status (*)(Handle, Matmul, Layout, Layout, Layout, Layout,
                                                Preference, int, Found*, int*));
SAME(cublasLtMatmulAlgoCheck,
     Status (*)(Handle, Matmul, Layout, Layout, Layout, Layout, const Words*, Found*));
SAME(cublasLtMatmulAlgoConfigGetAttribute,
     Status (*)(const Words*, cublasLtMatmulAlgoConfigAttributes_t, void*, size_t, size_t*));
SAME(cublasLtMatmul,
     Status (*)(Handle, Matmul, const void*, const void*, Layout, const void*, Layout, const void*,
                const void*, Layout, void*, Layout, const Words*, void*, size_t, cudaStream_t));
