// What a .cu sees of CUDA when g++ compiles it: the language surface, the intrinsics, and the
// emulated twins of the wrappers in kernels/src/common/device.cuh.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "async_copy.h"
#include "atomics.h"
#include "block.h"
#include "matrix.h"
#include "numbers.h"
#include "registry.h"
#include "site.h"
#include "warp.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

struct uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

#define threadIdx (::emulator::current->index)
#define blockIdx (::emulator::current->block->index)
#define blockDim (::emulator::current->block->size)
#define gridDim (::emulator::current->block->grid)

inline void __syncthreads(emulator::Site site = EMULATOR_HERE) { emulator::barrier(0, 0, site); }
// Barrier `id` in 1..15 of `threads` threads, a multiple of 32.
inline void named_barrier(int id, int threads, emulator::Site site = EMULATOR_HERE) {
    emulator::barrier(unsigned(id), unsigned(threads), site);
}

#define SHARED(T, name, N)                                                                       \
    static const char name##_key = 0;                                                            \
    T* name = static_cast<T*>(                                                                   \
        ::emulator::static_shared(&name##_key, sizeof(T) * (N), #name, EMULATOR_HERE))
#define DYNAMIC_SHARED(T, name) T* name = static_cast<T*>(::emulator::dynamic_shared())

#define KERNEL(name, threads, parameters, arguments, ...)                                        \
    static void name parameters { __VA_ARGS__ arguments; }                                       \
    static ::emulator::Kernel name##_kernel(                                                     \
        #name, threads, [](void** packed) { ::emulator::call_packed(&name, packed); },           \
        ::emulator::signature_of(&name));
#define KERNEL_BOUNDS(name, threads, min_blocks, parameters, arguments, ...)                     \
    KERNEL(name, threads, parameters, arguments, __VA_ARGS__)

using std::max;
using std::min;
template <class T> T __ldg(const T* p) { return *p; }
template <class T> T __ldcs(const T* p) { return *p; }
template <class T> void __stcs(T* p, T value) { *p = value; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
// Rounded once each, never fused.
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline double __dmul_rn(double x, double y) { return x * y; }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline float __uint_as_float(unsigned x) { return emulator::bit_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return emulator::bit_cast<unsigned>(x); }
inline int __float_as_int(float x) { return emulator::bit_cast<int>(x); }
inline float __int_as_float(int x) { return emulator::bit_cast<float>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
// The GPU's approximations have a relative error near 2^-22; the exact functions stand for them.
inline float exp2_fast(float x) { return exp2f(x); }
inline float log2_fast(float x) { return log2f(x); }
