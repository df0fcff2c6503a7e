// AdamW over all parameters in one flat pass (formula: mod.rs), each product and sum rounded once,
// in the order of the CPU room: the same bits.
// Layout: parameters, gradients, exp_avg, exp_avg_sq: n f32 in a row, the first `decayed` of them
// decayed; the factors of the update are read from the step's state, where `skip` leaves all as is.
// A copy in 16 bits, for the matrix products, is written along (=); or, without fp32 parameters,
// the bf16 ones are rounded stochastically, with a word of Philox for each element and update.
// Bound: memory, 28 bytes a parameter in fp32, 30 with a 16-bit copy, 24 without fp32 parameters.
#include "../common/step_state.cuh"

constexpr int THREADS = 256;

struct Factors {
    float decay, step_size, root_correction2, weight1, beta2, weight2, eps, gradient_scale;
};

__device__ __forceinline__ float update(float p, float gradient, float& m, float& v,
                                        const Factors& f, float decay) {
    const float g = __fmul_rn(gradient, f.gradient_scale);
    m = __fadd_rn(m, __fmul_rn(f.weight1, __fadd_rn(g, -m)));
    v = __fadd_rn(__fmul_rn(f.beta2, v), __fmul_rn(__fmul_rn(f.weight2, g), g));
    const float denominator = __fadd_rn(__fdiv_rn(__fsqrt_rn(v), f.root_correction2), f.eps);
    const float step = __fmul_rn(f.step_size, __fdiv_rn(m, denominator));
    return __fadd_rn(__fmul_rn(p, decay), -step);
}

// bf16 below or above x, with the probabilities that make the mean x. NaN and infinity stay.
__device__ __forceinline__ bf16 round_stochastically(float x, unsigned word) {
    const unsigned bits = __float_as_uint(x);
    if ((bits & 0x7F800000u) == 0x7F800000u) return from_float<bf16>(x);
    return from_float<bf16>(__uint_as_float((bits + (word & 0xFFFFu)) & 0xFFFF0000u));
}

__device__ __forceinline__ Factors factors_of(const StepState& s, float weight1, float beta2,
                                              float weight2, float eps) {
    return Factors{s.decay, s.step_size, s.root_correction2, weight1,
                   beta2,   weight2,     eps,                s.gradient_scale};
}

// P: type of the stored parameters: float (master weights) or bf16 (stochastic rounding).
// Copy: type of the copy written along; float: none.
template <typename P, typename Copy>
__device__ __forceinline__ void adamw_step(P* parameters, Copy* copy, float* exp_avg,
                                           float* exp_avg_sq, const float* gradients,
                                           const unsigned* state, size_t n, size_t decayed,
                                           float weight1, float beta2, float weight2, float eps,
                                           unsigned key_0, unsigned key_1, bool aligned) {
    constexpr bool STOCHASTIC = sizeof(P) == 2, COPIES = sizeof(Copy) == 2;
    constexpr int SIZE = STOCHASTIC || COPIES ? 8 : 4;
    const StepState& s = *reinterpret_cast<const StepState*>(state);
    if (s.skip) return;
    const Factors f = factors_of(s, weight1, beta2, weight2, eps);
    const uint2 key = make_uint2(key_0, key_1);
    const unsigned updates = s.updates;
    const size_t thread = blockIdx.x * size_t(THREADS) + threadIdx.x;
    const size_t threads = size_t(gridDim.x) * THREADS;

    const size_t vectors = aligned ? n / SIZE : 0;
    for (size_t vector = thread; vector < vectors; vector += threads) {
        const size_t i = vector * SIZE;
        Vec<float> g[SIZE / 4], m[SIZE / 4], v[SIZE / 4], p[SIZE / 4];
        Vec<bf16> p16;
        Vec<Copy> rounded;
#pragma unroll
        for (int part = 0; part < SIZE / 4; part++) {
            g[part] = load_vec_streaming(gradients + i + 4 * part);
            m[part] = load_vec_streaming(exp_avg + i + 4 * part);
            v[part] = load_vec_streaming(exp_avg_sq + i + 4 * part);
            if constexpr (!STOCHASTIC) p[part] = load_vec_streaming(parameters + i + 4 * part);
        }
        if constexpr (STOCHASTIC) p16 = load_vec(parameters + i);
#pragma unroll
        for (int part = 0; part < SIZE / 4; part++) {
            uint4 words = make_uint4(0, 0, 0, 0);
            if constexpr (STOCHASTIC)
                words = philox4x32_10(make_uint4(unsigned(i / 4 + part), unsigned(i >> 34),
                                                 updates, 0), key);
            const unsigned word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const float decay = i + 4 * part + k < decayed ? f.decay : 1.0f;
                const float before = STOCHASTIC ? to_float(p16[4 * part + k]) : p[part][k];
                const float after =
                    update(before, g[part][k], m[part][k], v[part][k], f, decay);
                if constexpr (STOCHASTIC)
                    p16[4 * part + k] = round_stochastically(after, word[k]);
                else
                    p[part][k] = after;
                if constexpr (COPIES) rounded[4 * part + k] = from_float<Copy>(after);
            }
        }
#pragma unroll
        for (int part = 0; part < SIZE / 4; part++) {
            store_vec_streaming(exp_avg + i + 4 * part, m[part]);
            store_vec_streaming(exp_avg_sq + i + 4 * part, v[part]);
            if constexpr (!STOCHASTIC) store_vec_streaming(parameters + i + 4 * part, p[part]);
        }
        if constexpr (STOCHASTIC) store_vec(parameters + i, p16);
        if constexpr (COPIES) store_vec(copy + i, rounded);
    }
    for (size_t i = vectors * SIZE + thread; i < n; i += threads) {
        float m = exp_avg[i], v = exp_avg_sq[i];
        const float decay = i < decayed ? f.decay : 1.0f;
        const float after = update(to_float(parameters[i]), gradients[i], m, v, f, decay);
        exp_avg[i] = m;
        exp_avg_sq[i] = v;
        if constexpr (STOCHASTIC) {
            const uint4 words = philox4x32_10(
                make_uint4(unsigned(i / 4), unsigned(i >> 34), updates, 0), key);
            const unsigned rest = i % 4;
            const unsigned word =
                rest < 2 ? (rest == 0 ? words.x : words.y) : (rest == 2 ? words.z : words.w);
            parameters[i] = round_stochastically(after, word);
        } else {
            parameters[i] = after;
        }
        if constexpr (COPIES) copy[i] = from_float<Copy>(after);
    }
}

template <typename Copy>
__device__ __forceinline__ void adamw_with_copy(float* parameters, Copy* copy, float* exp_avg,
                                                float* exp_avg_sq, const float* gradients,
                                                const unsigned* state, size_t n, size_t decayed,
                                                float weight1, float beta2, float weight2,
                                                float eps) {
    const bool aligned = is_vector_aligned(parameters) && is_vector_aligned(copy) &&
                         is_vector_aligned(exp_avg) && is_vector_aligned(exp_avg_sq) &&
                         is_vector_aligned(gradients);
    adamw_step<float, Copy>(parameters, copy, exp_avg, exp_avg_sq, gradients, state, n, decayed,
                            weight1, beta2, weight2, eps, 0, 0, aligned);
}

__device__ __forceinline__ void adamw_stochastic(bf16* parameters, float* exp_avg,
                                                 float* exp_avg_sq, const float* gradients,
                                                 const unsigned* state, size_t n, size_t decayed,
                                                 float weight1, float beta2, float weight2,
                                                 float eps, unsigned key_0, unsigned key_1) {
    const bool aligned = is_vector_aligned(parameters) && is_vector_aligned(exp_avg) &&
                         is_vector_aligned(exp_avg_sq) && is_vector_aligned(gradients);
    adamw_step<bf16, float>(parameters, nullptr, exp_avg, exp_avg_sq, gradients, state, n,
                            decayed, weight1, beta2, weight2, eps, key_0, key_1, aligned);
}

__device__ __forceinline__ void adamw_without_copy(float* parameters, float* exp_avg,
                                                   float* exp_avg_sq, const float* gradients,
                                                   const unsigned* state, size_t n,
                                                   size_t decayed, float weight1, float beta2,
                                                   float weight2, float eps) {
    adamw_with_copy<float>(parameters, nullptr, exp_avg, exp_avg_sq, gradients, state, n,
                           decayed, weight1, beta2, weight2, eps);
}

#define COMMON_PARAMETERS                                                                        \
    float *exp_avg, float *exp_avg_sq, const float *gradients, const unsigned *state,            \
        unsigned long long n, unsigned long long decayed, float weight1, float beta2,            \
        float weight2, float eps
#define COMMON_ARGUMENTS                                                                         \
    exp_avg, exp_avg_sq, gradients, state, n, decayed, weight1, beta2, weight2, eps

KERNEL(adamw_step_f32, THREADS, (float* parameters, COMMON_PARAMETERS),
       (parameters, COMMON_ARGUMENTS), adamw_without_copy)
KERNEL(adamw_step_bf16, THREADS, (float* parameters, bf16* copy, COMMON_PARAMETERS),
       (parameters, copy, COMMON_ARGUMENTS), adamw_with_copy<bf16>)
KERNEL(adamw_step_f16, THREADS, (float* parameters, f16* copy, COMMON_PARAMETERS),
       (parameters, copy, COMMON_ARGUMENTS), adamw_with_copy<f16>)
KERNEL(adamw_step_stochastic_bf16, THREADS,
       (bf16* parameters, COMMON_PARAMETERS, unsigned key_0, unsigned key_1),
       (parameters, COMMON_ARGUMENTS, key_0, key_1), adamw_stochastic)
