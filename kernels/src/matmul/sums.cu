// Sums in a fixed order: of the parts of a product, and of the columns of a matrix (the gradient of
// a bias), out = or +=, all in f32.
// matmul_sum_parts: out (n) from parts (count, n), one after the other, any n.
// matmul_backward_bias: dout (M, N) row-major, blockIdx.y sums rows_per_part rows of 256 columns to
// partials (parts, N): a warp takes every eighth row, a lane 8 columns; then the warps' sums are
// added in order. matmul_sum_bias adds the partials: each of 8 warps every eighth, then in order.
// Nothing is saved. Bound: memory, each input is read once.
#include "../common/device.cuh"

constexpr int THREADS = 256, WARPS = THREADS / 32;
constexpr int LANE_COLUMNS = 8, COLUMNS = 32 * LANE_COLUMNS;

__device__ __forceinline__ void sum_parts(float* out, const float* parts, size_t n, int count,
                                          int accumulate) {
    const size_t i = (size_t(blockIdx.x) * THREADS + threadIdx.x) * 4;
    if (n % 4 == 0 && is_vector_aligned(out) && is_vector_aligned(parts)) {
        if (i >= n) return;
        Vec<float> sum;
        if (accumulate) sum = load_vec(out + i);
        else sum[0] = sum[1] = sum[2] = sum[3] = 0.0f;
#pragma unroll 4
        for (int part = 0; part < count; part++) {
            const Vec<float> v = load_vec_streaming(parts + part * n + i);
#pragma unroll
            for (int e = 0; e < 4; e++) sum[e] += v[e];
        }
        store_vec(out + i, sum);
        return;
    }
    for (size_t e = i; e < n && e < i + 4; e++) {
        float sum = accumulate ? out[e] : 0.0f;
        for (int part = 0; part < count; part++) sum += parts[part * n + e];
        out[e] = sum;
    }
}

// A part of the column sums of dout.
template <typename T>
__device__ __forceinline__ void sum_columns(float* partials, const T* dout, int m, int n,
                                            int rows_per_part) {
    constexpr int VECTORS = LANE_COLUMNS / Vec<T>::size, WIDTH = Vec<T>::size;
    SHARED(float, sums, WARPS * COLUMNS);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int first = blockIdx.x * COLUMNS;
    const int from = blockIdx.y * rows_per_part, to = min(m, from + rows_per_part);
    float sum[LANE_COLUMNS];
#pragma unroll
    for (int e = 0; e < LANE_COLUMNS; e++) sum[e] = 0.0f;
    if (n % WIDTH == 0 && is_vector_aligned(dout)) {
        // Vector v of a lane is column (32 v + lane) * WIDTH: 512 bytes for a warp at a time.
#pragma unroll 4
        for (int row = from + warp; row < to; row += WARPS)
#pragma unroll
            for (int v = 0; v < VECTORS; v++) {
                const int col = first + (32 * v + lane) * WIDTH;
                if (col < n) {
                    const Vec<T> x = load_vec(dout + size_t(row) * n + col);
#pragma unroll
                    for (int e = 0; e < WIDTH; e++) sum[v * WIDTH + e] += to_float(x[e]);
                }
            }
#pragma unroll
        for (int v = 0; v < VECTORS; v++)
#pragma unroll
            for (int e = 0; e < WIDTH; e += 4) {
                Vec<float> four;
#pragma unroll
                for (int k = 0; k < 4; k++) four[k] = sum[v * WIDTH + e + k];
                store_vec(sums + warp * COLUMNS + (32 * v + lane) * WIDTH + e, four);
            }
    } else {
#pragma unroll 2
        for (int row = from + warp; row < to; row += WARPS)
#pragma unroll
            for (int e = 0; e < LANE_COLUMNS; e++) {
                const int col = first + 32 * e + lane;
                if (col < n) sum[e] += to_float(dout[size_t(row) * n + col]);
            }
#pragma unroll
        for (int e = 0; e < LANE_COLUMNS; e++) sums[warp * COLUMNS + 32 * e + lane] = sum[e];
    }
    __syncthreads();
    const int col = first + threadIdx.x;
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) total += sums[w * COLUMNS + threadIdx.x];
    if (col < n) partials[size_t(blockIdx.y) * n + col] = total;
}

__device__ __forceinline__ void sum_bias(float* dbias, const float* partials, int n, int count,
                                         int accumulate) {
    SHARED(float, sums, THREADS);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int col = blockIdx.x * 32 + lane;
    float sum = 0.0f;
    if (col < n) {
#pragma unroll 4
        for (int part = warp; part < count; part += WARPS) sum += partials[size_t(part) * n + col];
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (warp != 0 || col >= n) return;
    float total = accumulate ? dbias[col] : 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) total += sums[32 * w + lane];
    dbias[col] = total;
}

KERNEL(matmul_sum_parts_f32, THREADS,
       (float* out, const float* parts, unsigned long long n, int count, int accumulate),
       (out, parts, n, count, accumulate), sum_parts)
KERNEL(matmul_sum_bias_f32, THREADS,
       (float* dbias, const float* partials, int n, int count, int accumulate),
       (dbias, partials, n, count, accumulate), sum_bias)
#define BACKWARD_BIAS(T, dtype)                                                                  \
    KERNEL(matmul_backward_bias_##dtype, THREADS,                                                \
           (float* partials, const T* dout, int m, int n, int rows_per_part),                    \
           (partials, dout, m, n, rows_per_part), sum_columns<T>)
BACKWARD_BIAS(float, f32)
BACKWARD_BIAS(bf16, bf16)
BACKWARD_BIAS(f16, f16)
