// Batches from a dataset in device memory (formulas: mod.rs).
// Layout: tokens is a row of 16- or 32-bit ids, starts (B), inputs and targets (B, T) of 32 bits.
// Everything is assigned. A token lies at any place, so reads are of single ids; neighbouring
// threads read neighbouring ids. Bound: some 10 bytes a token, nothing beside the step's work.
#include "../common/step_state.cuh"

constexpr int THREADS = 256;

// The upper 64 bits of a product of 64 bits each.
__device__ __forceinline__ unsigned long long multiply_high(unsigned long long a,
                                                            unsigned long long b) {
    const unsigned long long a_low = a & 0xFFFFFFFFu, a_high = a >> 32;
    const unsigned long long b_low = b & 0xFFFFFFFFu, b_high = b >> 32;
    const unsigned long long middle = a_high * b_low + (a_low * b_low >> 32);
    const unsigned long long other = a_low * b_high + (middle & 0xFFFFFFFFu);
    return a_high * b_high + (middle >> 32) + (other >> 32);
}

__device__ __forceinline__ void batch_random_starts(unsigned long long* starts,
                                                    const unsigned* state,
                                                    unsigned long long bound, unsigned key_0,
                                                    unsigned key_1, int batch) {
    const int b = blockIdx.x * THREADS + threadIdx.x;
    if (b >= batch) return;
    const StepState& s = *reinterpret_cast<const StepState*>(state);
    const unsigned long long step =
        (static_cast<unsigned long long>(s.step_high) << 32 | s.step_low) +
        (static_cast<unsigned long long>(s.data_offset_high) << 32 | s.data_offset_low);
    const uint4 words = philox4x32_10(
        make_uint4(b / 2, unsigned(step), unsigned(step >> 32), s.micro_step),
        make_uint2(key_0, key_1));
    const unsigned low = b % 2 == 0 ? words.x : words.z, high = b % 2 == 0 ? words.y : words.w;
    starts[b] = multiply_high(static_cast<unsigned long long>(high) << 32 | low, bound);
}

template <typename Id>
__device__ __forceinline__ void batch_gather(int* inputs, int* targets, const Id* tokens,
                                             const unsigned long long* starts, int batch, int t) {
    const size_t n = size_t(batch) * t;
    for (size_t i = blockIdx.x * size_t(THREADS) + threadIdx.x; i < n;
         i += size_t(gridDim.x) * THREADS) {
        const Id* window = tokens + starts[i / t] + i % t;
        inputs[i] = int(window[0]);
        targets[i] = int(window[1]);
    }
}

KERNEL(batch_random_starts_u64, THREADS,
       (unsigned long long* starts, const unsigned* state, unsigned long long bound,
        unsigned key_0, unsigned key_1, int batch),
       (starts, state, bound, key_0, key_1, batch), batch_random_starts)
KERNEL(batch_gather_u16, THREADS,
       (int* inputs, int* targets, const unsigned short* tokens,
        const unsigned long long* starts, int batch, int t),
       (inputs, targets, tokens, starts, batch, t), batch_gather<unsigned short>)
KERNEL(batch_gather_u32, THREADS,
       (int* inputs, int* targets, const unsigned* tokens, const unsigned long long* starts,
        int batch, int t),
       (inputs, targets, tokens, starts, batch, t), batch_gather<unsigned>)
