// GELU in f32 and its derivative, the form with erf and the form with tanh (formulas: mod.rs): for
// the kernels of this room and of those that fuse it.
#pragma once
#include "../common/device.cuh"

template <bool tanh_form> __device__ __forceinline__ float gelu(float x) {
    if (tanh_form) {
        constexpr float SCALE = 2.0f * 0.79788456f, CUBIC = 0.044715f;
        return x / (1.0f + expf(-SCALE * x * (1.0f + CUBIC * x * x)));
    }
    constexpr float INV_SQRT_2 = 0.70710678f;
    // erfc keeps the digits far out on the left, where 1 + erf loses them.
    return 0.5f * x * erfcf(-x * INV_SQRT_2);
}

template <bool tanh_form> __device__ __forceinline__ float gelu_slope(float x) {
    if (tanh_form) {
        constexpr float SCALE = 2.0f * 0.79788456f, CUBIC = 0.044715f;
        const float sigmoid = 1.0f / (1.0f + expf(-SCALE * x * (1.0f + CUBIC * x * x)));
        const float slope = SCALE * (1.0f + 3.0f * CUBIC * x * x);
        return sigmoid * (1.0f + x * slope * (1.0f - sigmoid));
    }
    constexpr float INV_SQRT_2 = 0.70710678f, INV_SQRT_2PI = 0.39894228f;
    return 0.5f * erfcf(-x * INV_SQRT_2) + x * INV_SQRT_2PI * expf(-0.5f * x * x);
}
