// Softmax and cross entropy over rows of V logits (formulas: mod.rs), in one reading of the logits.
// Layout: a row of V logits takes `stride` >= V elements; the columns beyond V are padding of the
// vocabulary: they are no classes, and their gradient is 0.
// forward: losses[row] (=). forward_backward: also dlogits in place, padding included; `scale`
// times the loss scale of the step's state is the gradient of each row's loss.
// block kernels: one block a row, which it keeps in shared memory between its two passes where it
// fits (else the second pass reads it again, out of L2). warp kernels: one warp a row, V <= 1024,
// the row in registers.
// Bound: memory, one read and (backward) one write of the logits.
#include <float.h>

#include "../common/step_state.cuh"

constexpr int WARP_THREADS = 256;
constexpr int BLOCK_THREADS = 512;
constexpr float LOG2_E = 1.4426950408889634f;

// The greatest element h so far and the sum of e^(x - h). -FLT_MAX stands for no element: unlike
// -infinity it leaves no NaN behind.
struct Softmax {
    float highest = -FLT_MAX, sum = 0.0f;
};

__device__ __forceinline__ float exp_fast(float x) { return exp2_fast(x * LOG2_E); }

__device__ __forceinline__ void rebase(Softmax& s, float highest) {
    s.sum *= exp_fast(s.highest - highest);
    s.highest = highest;
}

template <int n> __device__ __forceinline__ void add(Softmax& s, const float (&x)[n]) {
    float highest = s.highest;
#pragma unroll
    for (int k = 0; k < n; k++) highest = fmaxf(highest, x[k]);
    rebase(s, highest);
#pragma unroll
    for (int k = 0; k < n; k++) s.sum += exp_fast(x[k] - highest);
}

// What makes a logit a gradient: factor e^(x - highest) - (scale at the target).
struct Gradient {
    float highest, factor, scale;
    int target;

    __device__ __forceinline__ float of(float x, int column) const {
        const float p = factor * exp_fast(x - highest);
        return column == target ? p - scale : p;
    }
};

__device__ __forceinline__ float gradient_scale(const unsigned* state, float scale) {
    return state ? scale * reinterpret_cast<const StepState*>(state)->loss_scale : scale;
}

template <typename T, bool backward>
__device__ __forceinline__ void cross_entropy_block(T* logits, float* losses, const int* targets,
                                                    const unsigned* state, float scale, int v,
                                                    int stride, bool keeps) {
    DYNAMIC_SHARED(T, kept);  // (V rounded up to vectors), where the row fits
    constexpr int SIZE = Vec<T>::size;
    const size_t row = blockIdx.x;
    T* x = logits + row * size_t(stride);
    const int target = targets[row];
    const float at_target = to_float(x[target]);
    const int vectors = is_vector_aligned(x) ? v / SIZE : 0;

    Softmax mine;
    for (int i = threadIdx.x; i < vectors; i += BLOCK_THREADS) {
        const Vec<T> in = load_vec(x + i * SIZE);
        if (backward && keeps) store_vec(kept + i * SIZE, in);
        float values[SIZE];
#pragma unroll
        for (int k = 0; k < SIZE; k++) values[k] = to_float(in[k]);
        add(mine, values);
    }
    for (int i = vectors * SIZE + threadIdx.x; i < v; i += BLOCK_THREADS) {
        const T in = x[i];
        if (backward && keeps) kept[i] = in;
        const float value[1] = {to_float(in)};
        add(mine, value);
    }
    rebase(mine, block_max(mine.highest));
    const float sum = block_sum(mine.sum);
    if (threadIdx.x == 0) losses[row] = logf(sum) + (mine.highest - at_target);
    if (!backward) return;

    // A thread reads again what it has itself put into shared memory: no barrier.
    const float row_scale = gradient_scale(state, scale);
    const Gradient gradient{mine.highest, row_scale / sum, row_scale, target};
    for (int i = threadIdx.x; i < vectors; i += BLOCK_THREADS) {
        const Vec<T> in = load_vec(keeps ? kept + i * SIZE : x + i * SIZE);
        Vec<T> out;
#pragma unroll
        for (int k = 0; k < SIZE; k++)
            out[k] = from_float<T>(gradient.of(to_float(in[k]), i * SIZE + k));
        store_vec(x + i * SIZE, out);
    }
    for (int i = vectors * SIZE + threadIdx.x; i < v; i += BLOCK_THREADS)
        x[i] = from_float<T>(gradient.of(to_float(keeps ? kept[i] : x[i]), i));
    for (int i = v + threadIdx.x; i < stride; i += BLOCK_THREADS) x[i] = from_float<T>(0.0f);
}

// ELEMENTS: of a lane, at least V / 32.
template <typename T, bool backward, int ELEMENTS>
__device__ __forceinline__ void cross_entropy_warp(T* logits, float* losses, const int* targets,
                                                   const unsigned* state, float scale, int v,
                                                   int stride, int rows) {
    const int lane = threadIdx.x % 32;
    const int row = blockIdx.x * (WARP_THREADS / 32) + threadIdx.x / 32;
    if (row >= rows) return;
    T* x = logits + size_t(row) * stride;
    const int target = targets[row];

    float values[ELEMENTS];
    float highest = -FLT_MAX, at_target = 0.0f;
#pragma unroll
    for (int k = 0; k < ELEMENTS; k++) {
        const int column = 32 * k + lane;
        values[k] = column < v ? to_float(x[column]) : -INFINITY;
        highest = fmaxf(highest, values[k]);
        if (column == target) at_target = values[k];
    }
    highest = warp_max(highest);
    at_target = warp_sum(at_target);  // one lane has it, the others 0
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < ELEMENTS; k++) sum += exp_fast(values[k] - highest);
    sum = warp_sum(sum);
    if (lane == 0) losses[row] = logf(sum) + (highest - at_target);
    if (!backward) return;

    const float row_scale = gradient_scale(state, scale);
    const Gradient gradient{highest, row_scale / sum, row_scale, target};
#pragma unroll
    for (int k = 0; k < ELEMENTS; k++) {
        const int column = 32 * k + lane;
        if (column < v) x[column] = from_float<T>(gradient.of(values[k], column));
    }
    for (int column = v + lane; column < stride; column += 32) x[column] = from_float<T>(0.0f);
}

// Forward only reads the logits.
template <typename T>
__device__ __forceinline__ void forward_block(float* losses, const T* logits, const int* targets,
                                              int v, int stride) {
    cross_entropy_block<T, false>(const_cast<T*>(logits), losses, targets, nullptr, 0.0f, v,
                                  stride, false);
}
template <typename T, int ELEMENTS>
__device__ __forceinline__ void forward_warp(float* losses, const T* logits, const int* targets,
                                             int v, int stride, int rows) {
    cross_entropy_warp<T, false, ELEMENTS>(const_cast<T*>(logits), losses, targets, nullptr, 0.0f,
                                           v, stride, rows);
}

#define WARP(T, dtype, ELEMENTS)                                                                 \
    KERNEL(cross_entropy_forward_warp##ELEMENTS##_##dtype, WARP_THREADS,                         \
           (float* losses, const T* logits, const int* targets, int v, int stride, int rows),    \
           (losses, logits, targets, v, stride, rows), forward_warp<T, ELEMENTS>)                \
    KERNEL(cross_entropy_forward_backward_warp##ELEMENTS##_##dtype, WARP_THREADS,                \
           (T * logits, float* losses, const int* targets, const unsigned* state, float scale,   \
            int v, int stride, int rows),                                                        \
           (logits, losses, targets, state, scale, v, stride, rows),                             \
           cross_entropy_warp<T, true, ELEMENTS>)
#define CROSS_ENTROPY(T, dtype)                                                                  \
    KERNEL(cross_entropy_forward_##dtype, BLOCK_THREADS,                                         \
           (float* losses, const T* logits, const int* targets, int v, int stride),              \
           (losses, logits, targets, v, stride), forward_block<T>)                               \
    KERNEL(cross_entropy_forward_backward_##dtype, BLOCK_THREADS,                                \
           (T * logits, float* losses, const int* targets, const unsigned* state, float scale,   \
            int v, int stride, int keeps),                                                       \
           (logits, losses, targets, state, scale, v, stride, keeps != 0),                       \
           cross_entropy_block<T, true>)                                                         \
    WARP(T, dtype, 4)                                                                            \
    WARP(T, dtype, 32)
CROSS_ENTROPY(float, f32)
CROSS_ENTROPY(bf16, bf16)
CROSS_ENTROPY(f16, f16)
