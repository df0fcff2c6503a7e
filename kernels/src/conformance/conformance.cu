// Micro-kernels, one for each thing that device.cuh and the emulator claim of the hardware: what a
// wrapper returns to which lane, how numbers round. One block each; all read and write 32-bit
// words, thread by thread. cases.rs makes the inputs, tests.rs compares with golden/outputs.txt.
#include "../common/device.cuh"

#define CONFORMANCE(name, threads)                                                               \
    KERNEL(conformance_##name, threads, (unsigned* out, const unsigned* in), (out, in), name)

// The 16-bit element whose bits are the low or high half of a word.
template <typename T> __device__ __forceinline__ T from_half_word(unsigned word, bool high) {
    const uint16_t bits = static_cast<uint16_t>(high ? word >> 16 : word);
    T x;
    memcpy(&x, &bits, 2);
    return x;
}

// ------------------------------------------------------------------------------------- ldmatrix

// 32 rows of 8 elements; the lanes name them in an order that no layout would suggest.
#define LOAD_MATRIX(N, suffix)                                                                   \
    __device__ __forceinline__ void load_matrix_##N##suffix(unsigned* out, const unsigned* in) { \
        SHARED(unsigned, rows, 128);                                                             \
        const int lane = threadIdx.x;                                                            \
        for (int i = lane; i < 128; i += 32) rows[i] = in[i];                                    \
        __syncthreads();                                                                         \
        uint32_t r[N];                                                                           \
        load_matrix_x##N##suffix(r, shared_address(rows + (lane * 5 + 3) % 32 * 4));             \
        for (int i = 0; i < N; i++) out[lane * N + i] = r[i];                                    \
    }                                                                                            \
    CONFORMANCE(load_matrix_##N##suffix, 32)
LOAD_MATRIX(1, )
LOAD_MATRIX(2, )
LOAD_MATRIX(4, )
LOAD_MATRIX(1, _transposed)
LOAD_MATRIX(2, _transposed)
LOAD_MATRIX(4, _transposed)

// ------------------------------------------------------------------------------------------ mma

// in: 4 floats of C, then the registers of A and of B, lane by lane.
template <typename T> __device__ __forceinline__ void m16n8k16(unsigned* out, const unsigned* in) {
    const int lane = threadIdx.x;
    in += lane * 10;
    float d[4];
    for (int i = 0; i < 4; i++) d[i] = __uint_as_float(in[i]);
    mma_m16n8k16(d, {in[4], in[5], in[6], in[7]}, {in[8], in[9]}, T());
    for (int i = 0; i < 4; i++) out[lane * 4 + i] = __float_as_uint(d[i]);
}
template <typename T> __device__ __forceinline__ void m16n8k8(unsigned* out, const unsigned* in) {
    const int lane = threadIdx.x;
    in += lane * 7;
    float d[4];
    for (int i = 0; i < 4; i++) d[i] = __uint_as_float(in[i]);
    mma_m16n8k8(d, {in[4], in[5]}, {in[6]}, T());
    for (int i = 0; i < 4; i++) out[lane * 4 + i] = __float_as_uint(d[i]);
}
#define MMA(name, function, T)                                                                   \
    KERNEL(conformance_##name, 32, (unsigned* out, const unsigned* in), (out, in), function<T>)
MMA(mma_m16n8k16_f16, m16n8k16, f16)
MMA(mma_m16n8k8_f16, m16n8k8, f16)
#if DEVICE_HAS_BF16_MMA
MMA(mma_m16n8k16_bf16, m16n8k16, bf16)
MMA(mma_m16n8k8_bf16, m16n8k8, bf16)
#endif

// ------------------------------------------------------------------------------------- cp.async

// Thread t copies 4 words to where thread 63 - t reads; two thirds of the copies are not valid.
__device__ __forceinline__ void copy_async_zero_fill(unsigned* out, const unsigned* in) {
    SHARED(unsigned, words, 256);
    const int t = threadIdx.x;
    for (int i = 0; i < 4; i++) words[t * 4 + i] = 0xDEADBEEFu;
    __syncthreads();
    copy_async_16(shared_address(words + t * 4), in + t * 4, t % 3 == 0);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    for (int i = 0; i < 4; i++) out[t * 4 + i] = words[(63 - t) * 4 + i];
}
CONFORMANCE(copy_async_zero_fill, 64)

// Three groups; each is read as soon as it must have landed.
__device__ __forceinline__ void copy_async_groups(unsigned* out, const unsigned* in) {
    SHARED(unsigned, words, 768);
    const int t = threadIdx.x;
    for (int group = 0; group < 3; group++) {
        copy_async_16(shared_address(words + group * 256 + t * 4), in + group * 256 + t * 4);
        copy_async_commit();
    }
    const int from = (t * 7 + 1) % 64 * 4;
    copy_async_wait<2>();
    __syncthreads();
    for (int i = 0; i < 4; i++) out[t * 12 + i] = words[from + i];
    copy_async_wait<1>();
    __syncthreads();
    for (int i = 0; i < 4; i++) out[t * 12 + 4 + i] = words[256 + from + i];
    copy_async_wait<0>();
    __syncthreads();
    for (int i = 0; i < 4; i++) out[t * 12 + 8 + i] = words[512 + from + i];
}
CONFORMANCE(copy_async_groups, 64)

// ----------------------------------------------------------------------------------------- warp

__device__ __forceinline__ void shuffles(unsigned* out, const unsigned* in) {
    const int lane = threadIdx.x;
    const unsigned x = in[lane];
    out += lane * 10;
    out[0] = __shfl_sync(ALL_LANES, x, (lane * 11 + 5) % 32);
    out[1] = __shfl_sync(ALL_LANES, x, lane * 3, 8);
    out[2] = __shfl_xor_sync(ALL_LANES, x, 1);
    out[3] = __shfl_xor_sync(ALL_LANES, x, 21);
    out[4] = __shfl_xor_sync(ALL_LANES, x, 5, 8);
    out[5] = __shfl_up_sync(ALL_LANES, x, 3);
    out[6] = __shfl_up_sync(ALL_LANES, x, 2, 16);
    out[7] = __shfl_down_sync(ALL_LANES, x, 7);
    out[8] = __shfl_down_sync(ALL_LANES, x, 1, 4);
    const float y = __shfl_xor_sync(ALL_LANES, __uint_as_float(x & 0x3FFFFFFFu), 16);
    out[9] = __float_as_uint(y);
}
CONFORMANCE(shuffles, 32)

__device__ __forceinline__ void votes(unsigned* out, const unsigned* in) {
    const int lane = threadIdx.x;
    const unsigned x = in[lane];
    out += lane * 6;
    out[0] = __ballot_sync(ALL_LANES, x & 1);
    out[1] = __any_sync(ALL_LANES, x == 0);
    out[2] = __all_sync(ALL_LANES, x != 0);
    // Some lanes by themselves.
    if (lane < 20) {
        out[3] = __ballot_sync(0x000FFFFFu, x & 2);
        out[4] = __any_sync(0x000FFFFFu, x & 4);
        out[5] = __all_sync(0x000FFFFFu, lane < 20);
    } else {
        out[3] = __ballot_sync(0xFFF00000u, x & 2);
        out[4] = __any_sync(0xFFF00000u, lane == 0);
        out[5] = __all_sync(0xFFF00000u, lane == 20);
    }
}
CONFORMANCE(votes, 32)

__device__ __forceinline__ void warp_reductions(unsigned* out, const unsigned* in) {
    const int lane = threadIdx.x;
    const float x = __uint_as_float(in[lane]);
    out[lane * 2] = __float_as_uint(warp_sum(x));
    out[lane * 2 + 1] = __float_as_uint(warp_max(x));
}
CONFORMANCE(warp_reductions, 32)

__device__ __forceinline__ void block_reductions(unsigned* out, const unsigned* in) {
    const int t = threadIdx.x;
    const float x = __uint_as_float(in[t]);
    out[t * 3] = __float_as_uint(block_sum(x));
    out[t * 3 + 1] = __float_as_uint(block_max(x));
    out[t * 3 + 2] = __float_as_uint(block_sum(-2.0f * x));
}
CONFORMANCE(block_reductions, 96)

// Warps 0 and 1 exchange words behind one barrier, warps 2 and 3 behind another; then all four.
__device__ __forceinline__ void named_barriers(unsigned* out, const unsigned* in) {
    SHARED(unsigned, words, 256);
    const int t = threadIdx.x, pair = t / 64;
    words[t] = in[t];
    named_barrier(1 + pair, 64);
    const unsigned near = words[t ^ 63];
    words[128 + t] = near + 1;
    named_barrier(7, 128);
    out[t * 2] = near;
    out[t * 2 + 1] = words[128 + (t ^ 127)];
}
CONFORMANCE(named_barriers, 128)

// ---------------------------------------------------------------------------------------- numbers

__device__ __forceinline__ void narrow_bf16(unsigned* out, const unsigned* in) {
    const float x = __uint_as_float(in[threadIdx.x]);
    out[threadIdx.x] = pack2(from_float<bf16>(x), from_float<bf16>(-x));
}
CONFORMANCE(narrow_bf16, 256)
__device__ __forceinline__ void narrow_f16(unsigned* out, const unsigned* in) {
    const float x = __uint_as_float(in[threadIdx.x]);
    out[threadIdx.x] = pack2(from_float<f16>(x), from_float<f16>(-x));
}
CONFORMANCE(narrow_f16, 256)

template <typename T> __device__ __forceinline__ void widen(unsigned* out, const unsigned* in) {
    const unsigned word = in[threadIdx.x];
    out[threadIdx.x * 2] = __float_as_uint(to_float(from_half_word<T>(word, false)));
    out[threadIdx.x * 2 + 1] = __float_as_uint(to_float(from_half_word<T>(word, true)));
}
KERNEL(conformance_widen_bf16, 256, (unsigned* out, const unsigned* in), (out, in), widen<bf16>)
KERNEL(conformance_widen_f16, 256, (unsigned* out, const unsigned* in), (out, in), widen<f16>)

// Which element is in which half.
__device__ __forceinline__ void packing(unsigned* out, const unsigned* in) {
    const int t = threadIdx.x;
    const float x = __uint_as_float(in[t * 2]), y = __uint_as_float(in[t * 2 + 1]);
    out[t * 4] = pack2<bf16>(x, y);
    out[t * 4 + 1] = pack2<f16>(x, y);
    const unsigned word = in[t * 2];
    out[t * 4 + 2] = pack2(from_half_word<f16>(word, true), from_half_word<f16>(word, false));
    out[t * 4 + 3] = pack2(from_half_word<bf16>(word, true), from_half_word<bf16>(word, false));
}
CONFORMANCE(packing, 32)

// One rounding per operation; the compiler may join a product and a sum only if it is told so.
__device__ __forceinline__ void arithmetic_f32(unsigned* out, const unsigned* in) {
    const int t = threadIdx.x;
    const float x = __uint_as_float(in[t * 3]), y = __uint_as_float(in[t * 3 + 1]),
                z = __uint_as_float(in[t * 3 + 2]);
    out += t * 7;
    out[0] = __float_as_uint(x + y);
    out[1] = __float_as_uint(x * y);
    out[2] = __float_as_uint(x / y);
    out[3] = __float_as_uint(sqrtf(fabsf(x)));
    out[4] = __float_as_uint(fmaf(x, y, z));
    out[5] = __float_as_uint(fmaxf(x, y));
    out[6] = __float_as_uint(fminf(x, y));
}
CONFORMANCE(arithmetic_f32, 128)

// Where the hardware approximates.
__device__ __forceinline__ void approximations(unsigned* out, const unsigned* in) {
    const int t = threadIdx.x;
    const float x = __uint_as_float(in[t]);
    out += t * 3;
    out[0] = __float_as_uint(exp2_fast(x));
    out[1] = __float_as_uint(log2_fast(fabsf(x)));
    out[2] = __float_as_uint(rsqrtf(fabsf(x)));
}
CONFORMANCE(approximations, 128)

__device__ __forceinline__ void integers(unsigned* out, const unsigned* in) {
    const int t = threadIdx.x;
    const unsigned x = in[t * 2], y = in[t * 2 + 1];
    out += t * 4;
    out[0] = __umulhi(x, y);
    out[1] = __popc(x);
    out[2] = __clz(static_cast<int>(x >> (y & 31)));
    out[3] = __ffs(static_cast<int>(x << (y & 31)));
}
CONFORMANCE(integers, 64)

__device__ __forceinline__ void philox(unsigned* out, const unsigned* in) {
    const int t = threadIdx.x;
    in += t * 6;
    const uint4 words = philox4x32_10(make_uint4(in[0], in[1], in[2], in[3]),
                                      make_uint2(in[4], in[5]));
    out += t * 4;
    out[0] = words.x;
    out[1] = words.y;
    out[2] = words.z;
    out[3] = words.w;
}
CONFORMANCE(philox, 64)

// ----------------------------------------------------------------------------------------- memory

// Thread t moves vector t; out: 4 words a thread, the elements of its vector backwards.
template <typename T> __device__ __forceinline__ void vectors(unsigned* out, const unsigned* in) {
    const int t = threadIdx.x, n = Vec<T>::size;
    const T* from = reinterpret_cast<const T*>(in);
    const Vec<T> v = t % 2 ? load_vec(from + t * n) : load_vec_streaming(from + t * n);
    Vec<T> reversed;
#pragma unroll
    for (int i = 0; i < n; i++) reversed[i] = v[n - 1 - i];
    T* to = reinterpret_cast<T*>(out);
    if (t % 3)
        store_vec(to + t * n, reversed);
    else
        store_vec_streaming(to + t * n, reversed);
}
KERNEL(conformance_vectors_f32, 64, (unsigned* out, const unsigned* in), (out, in), vectors<float>)
KERNEL(conformance_vectors_bf16, 64, (unsigned* out, const unsigned* in), (out, in), vectors<bf16>)
KERNEL(conformance_vectors_f16, 64, (unsigned* out, const unsigned* in), (out, in), vectors<f16>)

// 64 threads and 1 KiB; thread t writes words 4 t on, and reads every 64th of those from t on.
__device__ __forceinline__ void dynamic_shared(unsigned* out, const unsigned* in) {
    DYNAMIC_SHARED(unsigned, words);
    const int t = threadIdx.x;
    for (int i = 0; i < 4; i++) words[t * 4 + i] = in[t] + i;
    __syncthreads();
    for (int i = 0; i < 4; i++) out[t * 4 + i] = words[i * 64 + t];
}
CONFORMANCE(dynamic_shared, 64)

// out: what each cell held at the end, then per thread what cannot depend on the order.
__device__ __forceinline__ void atomics(unsigned* out, const unsigned* in) {
    SHARED(unsigned, cells, 8);
    const int t = threadIdx.x;
    const unsigned x = in[t];
    if (t < 8) {
        const unsigned start = t == 2 || t == 4 ? 0xFFFFFFFFu : 0u;
        cells[t] = start;
        out[t] = start;
    }
    __syncthreads();
    atomicAdd(&cells[0], x);
    atomicAdd(&out[0], x);
    atomicMax(&cells[1], x);
    atomicMax(&out[1], x);
    atomicMin(&cells[2], x);
    atomicMin(&out[2], x);
    atomicOr(&cells[3], 1u << (x & 31));
    atomicOr(&out[3], 1u << (x >> 27));
    atomicAnd(&cells[4], ~(1u << (x & 31)));
    atomicAnd(&out[4], ~(1u << (x >> 27)));
    atomicXor(&cells[5], x);
    atomicXor(&out[5], x);
    // Each ticket is drawn once: the bits of all of them together say so.
    const unsigned ticket = atomicAdd(&cells[6], 1u);
    atomicXor(&out[6], 1u << (ticket & 31));
    // One wins.
    const unsigned before = atomicCAS(&cells[7], 0u, 1u + t);
    atomicAdd(&out[7], before == 0 ? 1u : 0u);
    __syncthreads();
    if (t < 7) out[8 + t] = cells[t];
    if (t == 0) out[15] = cells[7] >= 1 && cells[7] <= 64;
}
CONFORMANCE(atomics, 64)
