// What every kernel includes: types, wrappers of PTX (no other file holds inline assembly), and
// small device functions. With -DEMULATED the wrappers come from ../../emulator/include instead.
// PTX: NVIDIA's "PTX ISA", sections on cp.async, ldmatrix, mma and bar. Needs sm_75 or later.
#pragma once

#ifdef EMULATED
#include "emulator.h"
#define DEVICE_HAS_BF16_MMA 1
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

typedef __nv_bfloat16 bf16;
typedef __half f16;

// The host pass of nvcc sees every kernel.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define DEVICE_HAS_BF16_MMA 1
#else
#define DEVICE_HAS_BF16_MMA 0
#endif

// The emulator's reports name the place of a call; see its site.h.
#define SITE
#define SITE_ONLY
#define PASS_SITE
#define PASS_SITE_ONLY

#define SHARED(T, name, N) __shared__ __align__(16) T name[N]
#define DYNAMIC_SHARED(T, name)                                                                  \
    extern __shared__ __align__(16) unsigned char dynamic_shared_bytes[];                        \
    T* name = reinterpret_cast<T*>(dynamic_shared_bytes)

// KERNEL(name, most threads of a block, (parameters), (arguments), function<...>)
#define KERNEL(name, threads, parameters, arguments, ...)                                        \
    extern "C" __global__ void __launch_bounds__(threads) name parameters {                      \
        __VA_ARGS__ arguments;                                                                   \
    }
#define KERNEL_BOUNDS(name, threads, min_blocks, parameters, arguments, ...)                     \
    extern "C" __global__ void __launch_bounds__(threads, min_blocks) name parameters {          \
        __VA_ARGS__ arguments;                                                                   \
    }

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(f16 x) { return __half2float(x); }

// Rounds to nearest even.
template <typename T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 from_float<bf16>(float x) {
    return __float2bfloat16_rn(x);
}
template <> __device__ __forceinline__ f16 from_float<f16>(float x) { return __float2half_rn(x); }

// 2^x and log2(x): relative error near 2^-22, subnormals flushed to zero.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float log2_fast(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Barrier `id` in 1..15 of `threads` threads, a multiple of 32.
__device__ __forceinline__ void named_barrier(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// The address of shared memory that the wrappers below take.
__device__ __forceinline__ uint32_t shared_address(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// 16 bytes from global to shared memory, both aligned to 16; zeros where !valid, and then `global`
// is not read. Done after copy_async_wait; a plain copy on sm_75.
__device__ __forceinline__ void copy_async_16(uint32_t shared, const void* global,
                                              bool valid = true) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    const int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global),
                 "r"(bytes)
                 : "memory");
#else
    const uint4 v = valid ? *static_cast<const uint4*>(global) : make_uint4(0, 0, 0, 0);
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(shared), "r"(v.x), "r"(v.y),
                 "r"(v.z), "r"(v.w)
                 : "memory");
#endif
}
// Makes a group of the copies that this thread issued since the last group.
__device__ __forceinline__ void copy_async_commit() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Waits until at most `in_flight` of this thread's latest groups are incomplete. What other
// threads copied is there only after a barrier that follows their wait.
template <int in_flight> __device__ __forceinline__ void copy_async_wait() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(in_flight) : "memory");
#endif
}

// ldmatrix: 8x8 matrices of 16-bit elements; lane 8 m + i gives the address of row i of matrix m.
// All lanes must give valid addresses, also those that x1 and x2 do not read (sm_75 asks for it).
__device__ __forceinline__ void load_matrix_x1(uint32_t (&r)[1], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(r[0])
                 : "r"(address)
                 : "memory");
}
__device__ __forceinline__ void load_matrix_x1_transposed(uint32_t (&r)[1], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(r[0])
                 : "r"(address)
                 : "memory");
}
__device__ __forceinline__ void load_matrix_x2(uint32_t (&r)[2], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(address)
                 : "memory");
}
__device__ __forceinline__ void load_matrix_x2_transposed(uint32_t (&r)[2], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(address)
                 : "memory");
}
__device__ __forceinline__ void load_matrix_x4(uint32_t (&r)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
__device__ __forceinline__ void load_matrix_x4_transposed(uint32_t (&r)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

// mma.sync: d (16x8, f32) += a (16xk, by rows) b (kx8, by columns). The last argument names the
// type. With group = lane / 4 and pair = lane % 4 * 2, and the lower element in the low half:
//   a[r]  row group + 8 (r % 2), columns pair + 8 (r / 2) and the next
//   b[r]  rows pair + 8 r and the next, column group
//   d     [0], [1] row group, columns pair and the next; [2], [3] row group + 8
__device__ __forceinline__ void mma_m16n8k8(float (&d)[4], const uint32_t (&a)[2],
                                            const uint32_t (&b)[1], f16) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b[0]));
}
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2], f16 type) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    mma_m16n8k8(d, {a[0], a[1]}, {b[0]}, type);
    mma_m16n8k8(d, {a[2], a[3]}, {b[1]}, type);
#endif
}
#if DEVICE_HAS_BF16_MMA
__device__ __forceinline__ void mma_m16n8k8(float (&d)[4], const uint32_t (&a)[2],
                                            const uint32_t (&b)[1], bf16) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b[0]));
}
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2], bf16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

#endif  // EMULATED

// 16 bytes of T, moved as one.
template <typename T> struct __align__(16) Vec {
    static constexpr int size = 16 / sizeof(T);
    T values[size];
    __device__ __forceinline__ T& operator[](int i) { return values[i]; }
    __device__ __forceinline__ const T& operator[](int i) const { return values[i]; }
};

#ifdef EMULATED
#define CHECK_VECTOR(p) ::emulator::check_aligned(p, 16, "a 16-byte vector", site)
#else
#define CHECK_VECTOR(p)
#endif

template <typename T> __device__ __forceinline__ Vec<T> load_vec(const T* p SITE) {
    CHECK_VECTOR(p);
    Vec<T> v;
    *reinterpret_cast<uint4*>(&v) = *reinterpret_cast<const uint4*>(p);
    return v;
}
template <typename T> __device__ __forceinline__ void store_vec(T* p, const Vec<T>& v SITE) {
    CHECK_VECTOR(p);
    *reinterpret_cast<uint4*>(p) = *reinterpret_cast<const uint4*>(&v);
}
// For what is used once: first out of the caches.
template <typename T> __device__ __forceinline__ Vec<T> load_vec_streaming(const T* p SITE) {
    CHECK_VECTOR(p);
    Vec<T> v;
    *reinterpret_cast<uint4*>(&v) = __ldcs(reinterpret_cast<const uint4*>(p));
    return v;
}
template <typename T>
__device__ __forceinline__ void store_vec_streaming(T* p, const Vec<T>& v SITE) {
    CHECK_VECTOR(p);
    __stcs(reinterpret_cast<uint4*>(p), *reinterpret_cast<const uint4*>(&v));
}

// Whether p may be read and written in vectors.
__device__ __forceinline__ bool is_vector_aligned(const void* p) {
    return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

// Two 16-bit elements in a register, as mma takes them.
template <typename T> __device__ __forceinline__ uint32_t pack2(T low, T high) {
    static_assert(sizeof(T) == 2, "two of them make 32 bits");
    uint16_t bits[2];
    memcpy(&bits[0], &low, 2);
    memcpy(&bits[1], &high, 2);
    return bits[0] | static_cast<uint32_t>(bits[1]) << 16;
}
template <typename T> __device__ __forceinline__ uint32_t pack2(float low, float high) {
    return pack2<T>(from_float<T>(low), from_float<T>(high));
}

constexpr unsigned ALL_LANES = 0xFFFFFFFFu;

// The sum over the warp, the same bits in every lane.
__device__ __forceinline__ float warp_sum(float x SITE) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2)
        x += __shfl_xor_sync(ALL_LANES, x, lanes, 32 PASS_SITE);
    return x;
}
__device__ __forceinline__ float warp_max(float x SITE) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2)
        x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, lanes, 32 PASS_SITE));
    return x;
}

constexpr int MAX_WARPS = 32;

// The sum over a block of whole warps (one dimension), in a fixed order, in every thread. All
// threads must call it; 128 bytes of static shared memory.
__device__ __forceinline__ float block_sum(float x SITE) {
    SHARED(float, sums, MAX_WARPS);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    x = warp_sum(x PASS_SITE);
    if (lane == 0) sums[warp] = x;
    __syncthreads(PASS_SITE_ONLY);
    x = warp_sum(lane < warps ? sums[lane] : 0.0f PASS_SITE);
    __syncthreads(PASS_SITE_ONLY);  // the next call may write
    return x;
}
__device__ __forceinline__ float block_max(float x SITE) {
    SHARED(float, maxima, MAX_WARPS);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    x = warp_max(x PASS_SITE);
    if (lane == 0) maxima[warp] = x;
    __syncthreads(PASS_SITE_ONLY);
    x = warp_max(lane < warps ? maxima[lane] : -INFINITY PASS_SITE);
    __syncthreads(PASS_SITE_ONLY);
    return x;
}

// As kernels/src/philox.rs.
__device__ __forceinline__ uint4 philox4x32_10(uint4 counter, uint2 key) {
    constexpr unsigned MULTIPLIER_0 = 0xD2511F53u, MULTIPLIER_1 = 0xCD9E8D57u;
    constexpr unsigned WEYL_0 = 0x9E3779B9u, WEYL_1 = 0xBB67AE85u;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const unsigned low = MULTIPLIER_0 * counter.x, high = MULTIPLIER_1 * counter.z;
        counter = make_uint4(__umulhi(MULTIPLIER_1, counter.z) ^ counter.y ^ key.x, high,
                             __umulhi(MULTIPLIER_0, counter.x) ^ counter.w ^ key.y, low);
        key = make_uint2(key.x + WEYL_0, key.y + WEYL_1);
    }
    return counter;
}

// The dropout of one tensor at one micro-step, as kernels/src/dropout: element i is kept where
// word i % 4 of the block at (i / 4, place, at) is >= threshold, and then multiplied by `keep`.
// p = 0 is threshold 0 and keep 1. `key`, `place`, `threshold` and `keep` are kernel arguments
// (`Dropout::args` in kernels/src/dropout/cuda.rs makes them); `at` is read from device memory.
struct Dropout {
    uint2 key, at;
    unsigned place, threshold;
    float keep;

    // `at` may be null where nothing is dropped (threshold 0): all factors are `keep` = 1.
    static __device__ __forceinline__ Dropout of(const unsigned* at, unsigned key_0,
                                                 unsigned key_1, unsigned place,
                                                 unsigned threshold, float keep) {
        const uint2 place_in_time = at ? make_uint2(at[0], at[1]) : make_uint2(0, 0);
        return Dropout{make_uint2(key_0, key_1), place_in_time, place, threshold, keep};
    }
    // Whether any element may be dropped; else the words need not be made.
    __device__ __forceinline__ bool drops() const { return threshold != 0; }

    // The words of elements 4 block to 4 block + 3.
    __device__ __forceinline__ uint4 words(unsigned block) const {
        return philox4x32_10(make_uint4(block, place, at.x, at.y), key);
    }
    __device__ __forceinline__ float factor(unsigned word) const {
        return word >= threshold ? keep : 0.0f;
    }
    // Of elements 4 block to 4 block + 3.
    __device__ __forceinline__ float4 factors(unsigned block) const {
        const uint4 w = words(block);
        return make_float4(factor(w.x), factor(w.y), factor(w.z), factor(w.w));
    }
    // Of one element; `factors` costs the same for four.
    __device__ __forceinline__ float factor_at(size_t i) const {
        const uint4 w = words(static_cast<unsigned>(i / 4));
        const unsigned rest = i % 4;
        return factor(rest < 2 ? (rest == 0 ? w.x : w.y) : (rest == 2 ? w.z : w.w));
    }
};
