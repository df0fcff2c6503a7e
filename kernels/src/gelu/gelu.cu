// GELU, the form with erf and the form with tanh (formulas: mod.rs).
// Layout: n elements in a row, any n; a thread takes 16 bytes at a time, the tail one element.
// forward: out = gelu(x). backward: dx *= gelu'(x), in place. Nothing is saved but x.
// Bound: memory, one read and one write of each element forward, two reads and one write backward.
#include "forms.cuh"

constexpr int THREADS = 256;

// Calls vector(i) for each whole vector and element(i) for each element that is in none.
template <typename T, typename Vector, typename Element>
__device__ __forceinline__ void for_each(size_t n, bool aligned, Vector vector, Element element) {
    const size_t thread = blockIdx.x * size_t(blockDim.x) + threadIdx.x;
    const size_t threads = size_t(gridDim.x) * blockDim.x;
    const size_t vectors = aligned ? n / Vec<T>::size : 0;
    for (size_t i = thread; i < vectors; i += threads) vector(i * Vec<T>::size);
    for (size_t i = vectors * Vec<T>::size + thread; i < n; i += threads) element(i);
}

template <typename T, bool tanh_form>
__device__ __forceinline__ void gelu_forward(T* out, const T* x, size_t n) {
    for_each<T>(
        n, is_vector_aligned(out) && is_vector_aligned(x),
        [=](size_t i) {
            const Vec<T> in = load_vec(x + i);
            Vec<T> result;
#pragma unroll
            for (int k = 0; k < Vec<T>::size; k++)
                result[k] = from_float<T>(gelu<tanh_form>(to_float(in[k])));
            store_vec(out + i, result);
        },
        [=](size_t i) { out[i] = from_float<T>(gelu<tanh_form>(to_float(x[i]))); });
}

template <typename T, bool tanh_form>
__device__ __forceinline__ void gelu_backward(T* dx, const T* x, size_t n) {
    for_each<T>(
        n, is_vector_aligned(dx) && is_vector_aligned(x),
        [=](size_t i) {
            const Vec<T> in = load_vec_streaming(x + i);
            Vec<T> gradient = load_vec(dx + i);
#pragma unroll
            for (int k = 0; k < Vec<T>::size; k++)
                gradient[k] =
                    from_float<T>(to_float(gradient[k]) * gelu_slope<tanh_form>(to_float(in[k])));
            store_vec(dx + i, gradient);
        },
        [=](size_t i) {
            dx[i] = from_float<T>(to_float(dx[i]) * gelu_slope<tanh_form>(to_float(x[i])));
        });
}

#define GELU(T, dtype)                                                                           \
    KERNEL(gelu_forward_##dtype, THREADS, (T * out, const T* x, unsigned long long n),           \
           (out, x, n), gelu_forward<T, false>)                                                    \
    KERNEL(gelu_backward_##dtype, THREADS, (T * dx, const T* x, unsigned long long n),           \
           (dx, x, n), gelu_backward<T, false>)                                                    \
    KERNEL(gelu_forward_tanh_##dtype, THREADS, (T * out, const T* x, unsigned long long n),      \
           (out, x, n), gelu_forward<T, true>)                                                   \
    KERNEL(gelu_backward_tanh_##dtype, THREADS, (T * dx, const T* x, unsigned long long n),      \
           (dx, x, n), gelu_backward<T, true>)
GELU(float, f32)
GELU(bf16, bf16)
GELU(f16, f16)
