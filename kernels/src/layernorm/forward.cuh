// LayerNorm of a row by a warp that holds the row in registers, whatever the row comes from: the
// forward kernels of the rooms layernorm and embedding.
#pragma once
#include "../common/device.cuh"

constexpr int ROW_THREADS = 256;
constexpr int ROWS_OF_A_BLOCK = ROW_THREADS / 32;
constexpr float LAYERNORM_EPS = 1e-5f;

// Where a normalised row goes, and what it is multiplied by. `bias` may be null.
template <typename T> struct Normalised {
    T* out;         // (M, C)
    float *mean, *rstd;  // (M)
    const T *weight, *bias;  // (C)
};

// The row in vectors, N of each lane: vector `lane + 32 k` for each k. `source(row, i)` gives the
// elements from column i on, as the type that is stored; C is a multiple of Vec<T>::size.
template <typename T, int N, typename Source>
__device__ __forceinline__ void layernorm_row(const Normalised<T>& to, size_t row, int c,
                                              const Source& source) {
    constexpr int SIZE = Vec<T>::size;
    const int lane = threadIdx.x % 32, vectors = c / SIZE;
    Vec<T> x[N];
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < N; k++) {
        const int vector = lane + 32 * k;
        if (vector >= vectors) continue;
        x[k] = source(row, vector * SIZE);
#pragma unroll
        for (int j = 0; j < SIZE; j++) sum += to_float(x[k][j]);
    }
    const float mean = warp_sum(sum) / c;
    float squares = 0.0f;
#pragma unroll
    for (int k = 0; k < N; k++) {
        if (lane + 32 * k >= vectors) continue;
#pragma unroll
        for (int j = 0; j < SIZE; j++) {
            const float d = to_float(x[k][j]) - mean;
            squares += d * d;
        }
    }
    const float rstd = rsqrtf(warp_sum(squares) / c + LAYERNORM_EPS);
    if (lane == 0) {
        to.mean[row] = mean;
        to.rstd[row] = rstd;
    }
#pragma unroll
    for (int k = 0; k < N; k++) {
        const int vector = lane + 32 * k;
        if (vector >= vectors) continue;
        const Vec<T> weight = load_vec(to.weight + vector * SIZE);
        Vec<T> bias;
        if (to.bias) bias = load_vec(to.bias + vector * SIZE);
        Vec<T> out;
#pragma unroll
        for (int j = 0; j < SIZE; j++) {
            const float scaled = (to_float(x[k][j]) - mean) * rstd * to_float(weight[j]);
            out[j] = from_float<T>(to.bias ? scaled + to_float(bias[j]) : scaled);
        }
        store_vec(to.out + row * c + vector * SIZE, out);
    }
}

// The same for any C and any alignment: an element at a time. `store(row, i)` makes element i,
// stores it where it belongs and returns it; `again(row, i)` reads it back.
template <typename T, typename Store, typename Again>
__device__ __forceinline__ void layernorm_row_any(const Normalised<T>& to, size_t row, int c,
                                                  const Store& store, const Again& again) {
    const int lane = threadIdx.x % 32;
    float sum = 0.0f;
    for (int i = lane; i < c; i += 32) sum += store(row, i);
    const float mean = warp_sum(sum) / c;
    float squares = 0.0f;
    for (int i = lane; i < c; i += 32) {
        const float d = again(row, i) - mean;
        squares += d * d;
    }
    const float rstd = rsqrtf(warp_sum(squares) / c + LAYERNORM_EPS);
    if (lane == 0) {
        to.mean[row] = mean;
        to.rstd[row] = rstd;
    }
    for (int i = lane; i < c; i += 32) {
        const float scaled = (again(row, i) - mean) * rstd * to_float(to.weight[i]);
        to.out[row * c + i] = from_float<T>(to.bias ? scaled + to_float(to.bias[i]) : scaled);
    }
}

__device__ __forceinline__ size_t row_of_the_warp() {
    return blockIdx.x * size_t(ROWS_OF_A_BLOCK) + threadIdx.x / 32;
}

// The factors of the vector at element i, a multiple of its size.
template <typename T>
__device__ __forceinline__ void vector_factors(const Dropout& dropout, size_t i,
                                               float (&factors)[Vec<T>::size]) {
#pragma unroll
    for (int part = 0; part < Vec<T>::size / 4; part++) {
        const float4 f = dropout.factors(static_cast<unsigned>(i / 4 + part));
        factors[4 * part] = f.x;
        factors[4 * part + 1] = f.y;
        factors[4 * part + 2] = f.z;
        factors[4 * part + 3] = f.w;
    }
}
