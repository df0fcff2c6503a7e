// Dropout added to the residual stream, and its backward pass (formulas and masks: mod.rs).
// Layout: n elements in a row; a thread takes 16 bytes at a time, the tail one element.
// residual_add: out = residual + branch * factor (=). backward: dx = dout * factor (=). Nothing is
// saved: the factors are made again.
// Bound: memory, three and two tensors; Philox costs some 10 instructions an element.
#include "../common/device.cuh"

constexpr int THREADS = 256;

// out = term(i) * factor(i) [+ residual(i)]
template <typename T, bool ADD>
__device__ __forceinline__ void dropped(T* out, const T* residual, const T* term, size_t n,
                                        const Dropout& dropout) {
    constexpr int SIZE = Vec<T>::size;
    const size_t thread = blockIdx.x * size_t(THREADS) + threadIdx.x;
    const size_t threads = size_t(gridDim.x) * THREADS;
    const bool aligned = is_vector_aligned(out) && is_vector_aligned(term) &&
                         (!ADD || is_vector_aligned(residual));
    const size_t vectors = aligned ? n / SIZE : 0;
    for (size_t vector = thread; vector < vectors; vector += threads) {
        const size_t i = vector * SIZE;
        const Vec<T> in = load_vec(term + i);
        Vec<T> result, before;
        if constexpr (ADD) before = load_vec(residual + i);
#pragma unroll
        for (int part = 0; part < SIZE / 4; part++) {
            float4 f = make_float4(1.0f, 1.0f, 1.0f, 1.0f);
            if (dropout.drops()) f = dropout.factors(static_cast<unsigned>(i / 4 + part));
            const float factors[4] = {f.x, f.y, f.z, f.w};
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const int e = 4 * part + k;
                const float product = to_float(in[e]) * factors[k];
                if constexpr (ADD)
                    result[e] = from_float<T>(to_float(before[e]) + product);
                else
                    result[e] = from_float<T>(product);
            }
        }
        store_vec(out + i, result);
    }
    for (size_t i = vectors * SIZE + thread; i < n; i += threads) {
        const float factor = dropout.drops() ? dropout.factor_at(i) : 1.0f;
        const float product = to_float(term[i]) * factor;
        if constexpr (ADD)
            out[i] = from_float<T>(to_float(residual[i]) + product);
        else
            out[i] = from_float<T>(product);
    }
}

template <typename T>
__device__ __forceinline__ void dropout_residual_add(T* out, const T* residual, const T* branch,
                                                     size_t n, const unsigned* at, unsigned key_0,
                                                     unsigned key_1, unsigned place,
                                                     unsigned threshold, float keep) {
    dropped<T, true>(out, residual, branch, n,
                     Dropout::of(at, key_0, key_1, place, threshold, keep));
}
template <typename T>
__device__ __forceinline__ void dropout_backward(T* dx, const T* dout, size_t n,
                                                 const unsigned* at, unsigned key_0,
                                                 unsigned key_1, unsigned place,
                                                 unsigned threshold, float keep) {
    dropped<T, false>(dx, nullptr, dout, n,
                      Dropout::of(at, key_0, key_1, place, threshold, keep));
}

#define DROPOUT_PARAMETERS                                                                       \
    const unsigned *at, unsigned key_0, unsigned key_1, unsigned place, unsigned threshold,      \
        float keep
#define DROPOUT(T, dtype)                                                                        \
    KERNEL(dropout_residual_add_##dtype, THREADS,                                                \
           (T * out, const T* residual, const T* branch, unsigned long long n,                   \
            DROPOUT_PARAMETERS),                                                                 \
           (out, residual, branch, n, at, key_0, key_1, place, threshold, keep),                 \
           dropout_residual_add<T>)                                                              \
    KERNEL(dropout_backward_##dtype, THREADS,                                                    \
           (T * dx, const T* dout, unsigned long long n, DROPOUT_PARAMETERS),                    \
           (dx, dout, n, at, key_0, key_1, place, threshold, keep), dropout_backward<T>)
DROPOUT(float, f32)
DROPOUT(bf16, bf16)
DROPOUT(f16, f16)
