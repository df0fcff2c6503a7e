// Micro-kernels, one for each wrapper of device.cuh, whose outputs show its layout. Called by
// kernels/src/cuda/conformance.rs on the emulator and on GPUs, where they must agree bit for bit.
#include "device.cuh"

// out (16, 8) = a (16, 16) b (8, 16)^T + out for one warp: cp.async, ldmatrix, mma.
template <typename T>
__device__ __forceinline__ void conformance_multiply(float* out, const T* a, const T* b) {
    SHARED(T, tile_a, 16 * 16);
    SHARED(T, tile_b, 8 * 16);
    const int lane = threadIdx.x, group = lane / 4, pair = lane % 4 * 2;
    copy_async_16(shared_address(tile_a + 8 * lane), a + 8 * lane);
    const bool valid = lane < 16;
    if (valid) copy_async_16(shared_address(tile_b + 8 * lane), b + 8 * lane, valid);
    copy_async_commit();
    copy_async_wait<0>();
    __syncwarp();
    uint32_t fragment_a[4], fragment_b[2];
    load_matrix_x4(fragment_a, shared_address(tile_a + lane % 16 * 16 + lane / 16 * 8));
    load_matrix_x2(fragment_b, shared_address(tile_b + lane % 8 * 16 + lane / 8 % 2 * 8));
    float d[4] = {out[group * 8 + pair], out[group * 8 + pair + 1], out[(group + 8) * 8 + pair],
                  out[(group + 8) * 8 + pair + 1]};
    mma_m16n8k16(d, fragment_a, fragment_b, T());
    out[group * 8 + pair] = d[0];
    out[group * 8 + pair + 1] = d[1];
    out[(group + 8) * 8 + pair] = d[2];
    out[(group + 8) * 8 + pair + 1] = d[3];
}
KERNEL(conformance_multiply_f16, 32, (float* out, const f16* a, const f16* b), (out, a, b),
       conformance_multiply<f16>)
#if DEVICE_HAS_BF16_MMA
KERNEL(conformance_multiply_bf16, 32, (float* out, const bf16* a, const bf16* b), (out, a, b),
       conformance_multiply<bf16>)
#endif

// The registers of ldmatrix x4, plain (128 words) and transposed (128 words), of four 8x8 matrices
// that stand one after the other in dynamic shared memory.
__device__ __forceinline__ void conformance_load_matrix(unsigned* out, const f16* in) {
    DYNAMIC_SHARED(f16, tile);
    const int lane = threadIdx.x;
    store_vec(tile + 8 * lane, load_vec(in + 8 * lane));
    __syncthreads();
    uint32_t plain[4], transposed[4];
    load_matrix_x4(plain, shared_address(tile + 8 * lane));
    load_matrix_x4_transposed(transposed, shared_address(tile + 8 * lane));
    for (int m = 0; m < 4; m++) {
        out[m * 32 + lane] = plain[m];
        out[(4 + m) * 32 + lane] = transposed[m];
    }
}
KERNEL(conformance_load_matrix_f16, 32, (unsigned* out, const f16* in), (out, in),
       conformance_load_matrix)

// Sum and maximum of each block of in; in has gridDim.x blockDim.x elements.
__device__ __forceinline__ void conformance_reduce(float* sums, float* maxima, const float* in) {
    const float x = in[blockIdx.x * blockDim.x + threadIdx.x];
    const float sum = block_sum(x), maximum = block_max(x);
    // Written by the last thread: every thread must have the result.
    if (threadIdx.x == blockDim.x - 1) {
        sums[blockIdx.x] = sum;
        maxima[blockIdx.x] = maximum;
    }
}
KERNEL(conformance_reduce_f32, 1024, (float* sums, float* maxima, const float* in),
       (sums, maxima, in), conformance_reduce)

// The dropout factors of elements first to first + n - 1.
__device__ __forceinline__ void conformance_dropout(float* out, const unsigned* at, unsigned key_0,
                                                    unsigned key_1, unsigned place,
                                                    unsigned threshold, float keep,
                                                    unsigned long long first,
                                                    unsigned long long n) {
    const Dropout dropout = Dropout::of(at, key_0, key_1, place, threshold, keep);
    const size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x;
    if (i < n) out[i] = dropout.factor_at(first + i);
}
KERNEL(conformance_dropout_f32, 256,
       (float* out, const unsigned* at, unsigned key_0, unsigned key_1, unsigned place,
        unsigned threshold, float keep, unsigned long long first, unsigned long long n),
       (out, at, key_0, key_1, place, threshold, keep, first, n), conformance_dropout)
