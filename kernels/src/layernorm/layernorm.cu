// LayerNorm over rows of C channels, alone or with the residual addition before it (formulas:
// mod.rs).
// forward: a warp takes a row and holds it in registers, N vectors of 16 bytes a lane. Writes out,
// mean and rstd (=). residual_forward: also x_out = x + branch * factor (=), of which the
// statistics are taken as it was rounded.
// backward: a block takes every grid-th row, a thread one vector of columns of each; dx is added to
// or assigned. Partial sums of dweight, dbias and, if wanted, of the columns of the new dx (the
// bias gradient of the projection below) go to scratch, in f32; `reduce` adds them in the order of
// the blocks (+=), so the result depends on the shape alone.
// Bound: memory; forward 2 MC elements (residual 4), backward 4 MC (3 where dx is assigned).
#include "forward.cuh"

template <typename T, int N>
__device__ __forceinline__ void layernorm_forward(T* out, float* mean, float* rstd, const T* x,
                                                  const T* weight, const T* bias, int rows, int c) {
    const size_t row = row_of_the_warp();
    if (row >= rows) return;
    layernorm_row<T, N>(Normalised<T>{out, mean, rstd, weight, bias}, row, c,
                        [=](size_t row, int i) { return load_vec(x + row * c + i); });
}

template <typename T>
__device__ __forceinline__ void layernorm_forward_any(T* out, float* mean, float* rstd, const T* x,
                                                      const T* weight, const T* bias, int rows,
                                                      int c) {
    const size_t row = row_of_the_warp();
    if (row >= rows) return;
    const auto read = [=](size_t row, int i) { return to_float(x[row * c + i]); };
    layernorm_row_any(Normalised<T>{out, mean, rstd, weight, bias}, row, c, read, read);
}

template <typename T, int N>
__device__ __forceinline__ void residual_forward(T* x_out, T* out, float* mean, float* rstd,
                                                 const T* x, const T* branch, const T* weight,
                                                 const T* bias, int rows, int c,
                                                 const unsigned* at, unsigned key_0,
                                                 unsigned key_1, unsigned place,
                                                 unsigned threshold, float keep) {
    const size_t row = row_of_the_warp();
    if (row >= rows) return;
    const Dropout dropout = Dropout::of(at, key_0, key_1, place, threshold, keep);
    layernorm_row<T, N>(
        Normalised<T>{out, mean, rstd, weight, bias}, row, c, [=](size_t row, int i) {
            constexpr int SIZE = Vec<T>::size;
            const size_t first = row * c + i;
            const Vec<T> a = load_vec(x + first), b = load_vec_streaming(branch + first);
            float factors[SIZE];
            if (dropout.drops()) vector_factors<T>(dropout, first, factors);
            Vec<T> sum;
#pragma unroll
            for (int k = 0; k < SIZE; k++) {
                const float term = to_float(b[k]) * (dropout.drops() ? factors[k] : 1.0f);
                sum[k] = from_float<T>(to_float(a[k]) + term);
            }
            store_vec(x_out + first, sum);
            return sum;
        });
}

template <typename T>
__device__ __forceinline__ void residual_forward_any(T* x_out, T* out, float* mean, float* rstd,
                                                     const T* x, const T* branch, const T* weight,
                                                     const T* bias, int rows, int c,
                                                     const unsigned* at, unsigned key_0,
                                                     unsigned key_1, unsigned place,
                                                     unsigned threshold, float keep) {
    const size_t row = row_of_the_warp();
    if (row >= rows) return;
    const Dropout dropout = Dropout::of(at, key_0, key_1, place, threshold, keep);
    layernorm_row_any(
        Normalised<T>{out, mean, rstd, weight, bias}, row, c,
        [=](size_t row, int i) {
            const size_t e = row * c + i;
            const float factor = dropout.drops() ? dropout.factor_at(e) : 1.0f;
            x_out[e] = from_float<T>(to_float(x[e]) + to_float(branch[e]) * factor);
            return to_float(x_out[e]);
        },
        [=](size_t row, int i) { return to_float(x_out[row * c + i]); });
}

// Two sums over the block in a fixed order, in every thread, with one barrier: `buffer` alternates
// between two values, so that a slow warp still finds its sums.
__device__ __forceinline__ float2 block_sums(float2 x, int buffer) {
    SHARED(float2, sums, 2 * MAX_WARPS);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    x.x = warp_sum(x.x);
    x.y = warp_sum(x.y);
    if (lane == 0) sums[buffer * MAX_WARPS + warp] = x;
    __syncthreads();
    const float2 mine = lane < warps ? sums[buffer * MAX_WARPS + lane] : make_float2(0.0f, 0.0f);
    return make_float2(warp_sum(mine.x), warp_sum(mine.y));
}

// SIZE columns of a thread in each of COLUMNS / SIZE groups: one aligned vector, or COLUMNS single
// columns that lie blockDim.x apart.
template <typename T, int SIZE, int GROUPS>
__device__ __forceinline__ void layernorm_backward(T* dx, float* partials, const T* dout,
                                                   const T* x, const float* mean,
                                                   const float* rstd, const T* weight, int rows,
                                                   int c, bool assign, bool sums_of_dx) {
    float dweight[GROUPS][SIZE] = {}, dbias[GROUPS][SIZE] = {}, dx_sums[GROUPS][SIZE] = {};
    float w[GROUPS][SIZE];
    const auto column = [=](int group) { return SIZE * int(group * blockDim.x + threadIdx.x); };
#pragma unroll
    for (int g = 0; g < GROUPS; g++)
#pragma unroll
        for (int k = 0; k < SIZE; k++)
            w[g][k] = column(g) < c ? to_float(weight[column(g) + k]) : 0.0f;

    // Elements of this thread; zeros beyond the last column.
    const auto read = [=](float (&to)[GROUPS][SIZE], const T* from, size_t row) {
#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            if constexpr (SIZE == 1) {
                to[g][0] = column(g) < c ? to_float(from[row * c + column(g)]) : 0.0f;
            } else {
                Vec<T> v;
                if (column(g) < c) v = load_vec(from + row * c + column(g));
#pragma unroll
                for (int k = 0; k < SIZE; k++) to[g][k] = column(g) < c ? to_float(v[k]) : 0.0f;
            }
        }
    };
    int buffer = 0;
    for (size_t row = blockIdx.x; row < rows; row += gridDim.x, buffer ^= 1) {
        const float m = mean[row], r = rstd[row];
        float d[GROUPS][SIZE], xhat[GROUPS][SIZE], old[GROUPS][SIZE];
        read(d, dout, row);
        read(xhat, x, row);
        if (!assign) read(old, dx, row);
        float2 sums = make_float2(0.0f, 0.0f);
#pragma unroll
        for (int g = 0; g < GROUPS; g++)
#pragma unroll
            for (int k = 0; k < SIZE; k++) {
                xhat[g][k] = (xhat[g][k] - m) * r;
                dweight[g][k] += d[g][k] * xhat[g][k];
                dbias[g][k] += d[g][k];
                d[g][k] *= w[g][k];
                sums.x += d[g][k];
                sums.y += d[g][k] * xhat[g][k];
            }
        sums = block_sums(sums, buffer);
        sums.x /= c;
        sums.y /= c;
#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            if (column(g) >= c) continue;
            Vec<T> out;
            T single[1];
#pragma unroll
            for (int k = 0; k < SIZE; k++) {
                const float gradient = r * (d[g][k] - sums.x - xhat[g][k] * sums.y);
                const T rounded = from_float<T>(assign ? gradient : old[g][k] + gradient);
                if constexpr (SIZE == 1) single[0] = rounded; else out[k] = rounded;
                dx_sums[g][k] += to_float(rounded);
            }
            if constexpr (SIZE == 1)
                dx[row * c + column(g)] = single[0];
            else
                store_vec(dx + row * c + column(g), out);
        }
    }
    // (3, blocks, C)
    const size_t stride = size_t(gridDim.x) * c;
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        if (column(g) >= c) continue;
        float* to = partials + size_t(blockIdx.x) * c + column(g);
#pragma unroll
        for (int k = 0; k < SIZE; k++) {
            to[k] = dweight[g][k];
            to[stride + k] = dbias[g][k];
            if (sums_of_dx) to[2 * stride + k] = dx_sums[g][k];
        }
    }
}

// sum[column] += the partial sums of the blocks, in their order. A block for 32 columns: warp w
// adds every eighth block from w on, and the eight sums are added in their order.
__device__ __forceinline__ void layernorm_reduce(float* sum, const float* partials, int blocks,
                                                 int c) {
    SHARED(float, sums, ROW_THREADS);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, column = blockIdx.x * 32 + lane;
    float mine = 0.0f;
    if (column < c)
        for (int b = warp; b < blocks; b += ROWS_OF_A_BLOCK) mine += partials[size_t(b) * c + column];
    sums[threadIdx.x] = mine;
    __syncthreads();
    if (warp != 0 || column >= c) return;
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < ROWS_OF_A_BLOCK; w++) total += sums[w * 32 + lane];
    sum[column] += total;
}

#define FORWARD_PARAMETERS(T)                                                                    \
    (T * out, float* mean, float* rstd, const T* x, const T* weight, const T* bias, int rows,    \
     int c)
#define FORWARD_ARGUMENTS (out, mean, rstd, x, weight, bias, rows, c)
#define RESIDUAL_PARAMETERS(T)                                                                   \
    (T * x_out, T * out, float* mean, float* rstd, const T* x, const T* branch, const T* weight, \
     const T* bias, int rows, int c, const unsigned* at, unsigned key_0, unsigned key_1,         \
     unsigned place, unsigned threshold, float keep)
#define RESIDUAL_ARGUMENTS                                                                       \
    (x_out, out, mean, rstd, x, branch, weight, bias, rows, c, at, key_0, key_1, place,          \
     threshold, keep)
#define FORWARD(T, dtype, N)                                                                     \
    KERNEL(layernorm_forward_##N##_##dtype, ROW_THREADS, FORWARD_PARAMETERS(T),                  \
           FORWARD_ARGUMENTS, layernorm_forward<T, N>)                                           \
    KERNEL(layernorm_residual_forward_##N##_##dtype, ROW_THREADS, RESIDUAL_PARAMETERS(T),        \
           RESIDUAL_ARGUMENTS, residual_forward<T, N>)
#define BACKWARD_PARAMETERS(T)                                                                   \
    (T * dx, float* partials, const T* dout, const T* x, const float* mean, const float* rstd,   \
     const T* weight, int rows, int c, int assign, int sums_of_dx)
#define BACKWARD_ARGUMENTS                                                                       \
    (dx, partials, dout, x, mean, rstd, weight, rows, c, assign != 0, sums_of_dx != 0)
#define LAYERNORM(T, dtype)                                                                      \
    FORWARD(T, dtype, 1)                                                                         \
    FORWARD(T, dtype, 2)                                                                         \
    FORWARD(T, dtype, 4)                                                                         \
    FORWARD(T, dtype, 8)                                                                         \
    KERNEL(layernorm_forward_any_##dtype, ROW_THREADS, FORWARD_PARAMETERS(T), FORWARD_ARGUMENTS, \
           layernorm_forward_any<T>)                                                             \
    KERNEL(layernorm_residual_forward_any_##dtype, ROW_THREADS, RESIDUAL_PARAMETERS(T),          \
           RESIDUAL_ARGUMENTS, residual_forward_any<T>)                                          \
    KERNEL(layernorm_backward_##dtype, 512, BACKWARD_PARAMETERS(T), BACKWARD_ARGUMENTS,          \
           layernorm_backward<T, Vec<T>::size, 1>)                                               \
    KERNEL(layernorm_backward_any_##dtype, 512, BACKWARD_PARAMETERS(T), BACKWARD_ARGUMENTS,      \
           layernorm_backward<T, 1, 8>)
LAYERNORM(float, f32)
LAYERNORM(bf16, bf16)
LAYERNORM(f16, f16)
KERNEL(layernorm_reduce_f32, ROW_THREADS, (float* sum, const float* partials, int blocks, int c),
       (sum, partials, blocks, c), layernorm_reduce)
