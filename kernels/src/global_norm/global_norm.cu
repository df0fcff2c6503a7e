// The sum of squares of all gradients and the number of those that are not finite: the first of
// two stages, whose second is in the room controller.
// Layout: n elements in a row; block b of a grid that depends on n alone takes every grid-th tile.
// partials[b] = sum (f64 bits), nonfinite[b] = count. Nothing is saved.
// Bound: memory, one read of 4n bytes. A thread adds four squares in f32, then one f64 addition:
// a quarter of n in f64 stays below the time of the read on every card (1/64 rate: 0.25 of T4's).
#include "../common/device.cuh"

constexpr int THREADS = 256;

__device__ __forceinline__ double block_sum_f64(double x) {
    SHARED(double, sums, THREADS);
    sums[threadIdx.x] = x;
    __syncthreads();
#pragma unroll
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    const double sum = sums[0];
    __syncthreads();
    return sum;
}

__device__ __forceinline__ bool is_nonfinite(float x) {
    return (__float_as_uint(x) & 0x7F800000u) == 0x7F800000u;
}

__device__ __forceinline__ void global_norm_partials(unsigned long long* partials,
                                                     unsigned* nonfinite, const float* gradients,
                                                     size_t n) {
    const size_t thread = blockIdx.x * size_t(THREADS) + threadIdx.x;
    const size_t threads = size_t(gridDim.x) * THREADS;
    const size_t vectors = is_vector_aligned(gradients) ? n / 4 : 0;
    double sum = 0.0;
    unsigned bad = 0;
    for (size_t i = thread; i < vectors; i += threads) {
        const Vec<float> g = load_vec(gradients + 4 * i);
        sum += double(g[0] * g[0] + g[1] * g[1] + (g[2] * g[2] + g[3] * g[3]));
#pragma unroll
        for (int k = 0; k < 4; k++) bad += is_nonfinite(g[k]);
    }
    for (size_t i = 4 * vectors + thread; i < n; i += threads) {
        const float g = gradients[i];
        sum += double(g * g);
        bad += is_nonfinite(g);
    }
    sum = block_sum_f64(sum);
    // Counts below 2^24 add up exactly as floats; more of them are as bad.
    const float count = block_sum(float(bad));
    if (threadIdx.x == 0) {
        memcpy(&partials[blockIdx.x], &sum, sizeof(sum));
        nonfinite[blockIdx.x] = unsigned(count);
    }
}

KERNEL(global_norm_partials_f32, THREADS,
       (unsigned long long* partials, unsigned* nonfinite, const float* gradients,
        unsigned long long n),
       (partials, nonfinite, gradients, n), global_norm_partials)
