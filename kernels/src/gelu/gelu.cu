// GELU, the form with erf and the form with tanh (formulas: mod.rs).
// Layout: n elements in a row, any n; a thread takes 16 bytes at a time, the tail one element.
// forward: out = gelu(x). backward: dx *= gelu'(x), in place. Nothing is saved but x.
// Bound: memory, one read and one write of each element forward, two reads and one write backward.
#include "../common/device.cuh"

constexpr int THREADS = 256;

enum Form { ERF, TANH };

template <Form form> __device__ __forceinline__ float gelu(float x) {
    if (form == ERF) {
        constexpr float INV_SQRT_2 = 0.70710678f;
        // erfc keeps the digits far out on the left, where 1 + erf loses them.
        return 0.5f * x * erfcf(-x * INV_SQRT_2);
    }
    constexpr float SCALE = 2.0f * 0.79788456f, CUBIC = 0.044715f;
    return x / (1.0f + expf(-SCALE * x * (1.0f + CUBIC * x * x)));
}

template <Form form> __device__ __forceinline__ float derivative(float x) {
    if (form == ERF) {
        constexpr float INV_SQRT_2 = 0.70710678f, INV_SQRT_2PI = 0.39894228f;
        const float cdf = 0.5f * erfcf(-x * INV_SQRT_2);
        return cdf + x * INV_SQRT_2PI * expf(-0.5f * x * x);
    }
    constexpr float SCALE = 2.0f * 0.79788456f, CUBIC = 0.044715f;
    const float sigmoid = 1.0f / (1.0f + expf(-SCALE * x * (1.0f + CUBIC * x * x)));
    const float slope = SCALE * (1.0f + 3.0f * CUBIC * x * x);
    return sigmoid * (1.0f + x * slope * (1.0f - sigmoid));
}

// Calls vector(i) for each whole vector and element(i) for each element that is in none.
template <typename T, typename Vector, typename Element>
__device__ __forceinline__ void for_each(size_t n, bool aligned, Vector vector, Element element) {
    const size_t thread = blockIdx.x * size_t(blockDim.x) + threadIdx.x;
    const size_t threads = size_t(gridDim.x) * blockDim.x;
    const size_t vectors = aligned ? n / Vec<T>::size : 0;
    for (size_t i = thread; i < vectors; i += threads) vector(i * Vec<T>::size);
    for (size_t i = vectors * Vec<T>::size + thread; i < n; i += threads) element(i);
}

template <typename T, Form form>
__device__ __forceinline__ void gelu_forward(T* out, const T* x, size_t n) {
    for_each<T>(
        n, is_vector_aligned(out) && is_vector_aligned(x),
        [=](size_t i) {
            const Vec<T> in = load_vec(x + i);
            Vec<T> result;
#pragma unroll
            for (int k = 0; k < Vec<T>::size; k++)
                result[k] = from_float<T>(gelu<form>(to_float(in[k])));
            store_vec(out + i, result);
        },
        [=](size_t i) { out[i] = from_float<T>(gelu<form>(to_float(x[i]))); });
}

template <typename T, Form form>
__device__ __forceinline__ void gelu_backward(T* dx, const T* x, size_t n) {
    for_each<T>(
        n, is_vector_aligned(dx) && is_vector_aligned(x),
        [=](size_t i) {
            const Vec<T> in = load_vec_streaming(x + i);
            Vec<T> gradient = load_vec(dx + i);
#pragma unroll
            for (int k = 0; k < Vec<T>::size; k++)
                gradient[k] =
                    from_float<T>(to_float(gradient[k]) * derivative<form>(to_float(in[k])));
            store_vec(dx + i, gradient);
        },
        [=](size_t i) {
            dx[i] = from_float<T>(to_float(dx[i]) * derivative<form>(to_float(x[i])));
        });
}

#define GELU(T, dtype)                                                                           \
    KERNEL(gelu_forward_##dtype, THREADS, (T * out, const T* x, unsigned long long n),           \
           (out, x, n), gelu_forward<T, ERF>)                                                    \
    KERNEL(gelu_backward_##dtype, THREADS, (T * dx, const T* x, unsigned long long n),           \
           (dx, x, n), gelu_backward<T, ERF>)                                                    \
    KERNEL(gelu_forward_tanh_##dtype, THREADS, (T * out, const T* x, unsigned long long n),      \
           (out, x, n), gelu_forward<T, TANH>)                                                   \
    KERNEL(gelu_backward_tanh_##dtype, THREADS, (T * dx, const T* x, unsigned long long n),      \
           (dx, x, n), gelu_backward<T, TANH>)
GELU(float, f32)
GELU(bf16, bf16)
GELU(f16, f16)
