// Kernels that are wrong on purpose, each in one way, for planted.rs: the line that is to blame, or
// the one that a report must name, ends in `// PLANTED: kernel`. `fine_…` are their right twins.
// All take (out, in): 64 floats each in blocks of 64 threads, unless planted.rs says otherwise.
#include "../../src/common/device.cuh"

#define PLANTED(name) KERNEL(name, 64, (float* out, const float* in), (out, in), name##_body)
#define BODY(name)                                                                               \
    __device__ __forceinline__ void name##_body([[maybe_unused]] float* out,                     \
                                                [[maybe_unused]] const float* in)

// Each thread reads what another wrote.
BODY(missing_barrier) {
    SHARED(float, words, 64);
    const int t = threadIdx.x;
    words[t] = in[t];
    out[t] = words[(t + 1) % 64];
}
PLANTED(missing_barrier)
BODY(fine_barrier) {
    SHARED(float, words, 64);
    const int t = threadIdx.x;
    words[t] = in[t];
    __syncthreads();
    out[t] = words[(t + 1) % 64];
}
PLANTED(fine_barrier)

// A shuffle orders no memory: the result is right in every order of the emulator, by luck.
BODY(shuffle_for_syncwarp) {
    SHARED(float, words, 64);
    const int t = threadIdx.x;
    words[t] = in[t];
    const float x = __shfl_xor_sync(ALL_LANES, in[t], 1);
    out[t] = words[t ^ 1] + 0.0f * x;
}
PLANTED(shuffle_for_syncwarp)
BODY(fine_syncwarp) {
    SHARED(float, words, 64);
    const int t = threadIdx.x;
    words[t] = in[t];
    __syncwarp();
    out[t] = words[t ^ 1];
}
PLANTED(fine_syncwarp)

// Blocks write the same element.
BODY(blocks_race) {
    if (threadIdx.x == 0) out[0] = in[blockIdx.x];
}
PLANTED(blocks_race)

// Each block may use its shared memory as it likes, whatever other blocks did with theirs.
BODY(fine_blocks) {
    SHARED(float, words, 64);
    const int t = threadIdx.x;
    words[(t + blockIdx.x) % 64] = in[t];
    __syncthreads();
    if (blockIdx.x == 0) out[t] = words[63 - t];
}
PLANTED(fine_blocks)

// Of two groups only the first has landed.
BODY(late_wait) {
    SHARED(float, words, 128);
    const int t = threadIdx.x;
    if (t < 16) copy_async_16(shared_address(words + 4 * t), in + 4 * t);
    copy_async_commit();
    if (t < 16) copy_async_16(shared_address(words + 64 + 4 * t), in + 4 * t);
    copy_async_commit();
    copy_async_wait<1>();
    __syncthreads();
    out[t] = words[64 + t];
}
PLANTED(late_wait)
BODY(fine_wait) {
    SHARED(float, words, 128);
    const int t = threadIdx.x;
    if (t < 16) copy_async_16(shared_address(words + 4 * t), in + 4 * t);
    copy_async_commit();
    if (t < 16) copy_async_16(shared_address(words + 64 + 4 * t), in + 4 * t);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    out[t] = words[64 + t];
}
PLANTED(fine_wait)

// The copy is this thread's alone until a barrier.
BODY(wait_without_barrier) {
    SHARED(float, words, 64);
    const int t = threadIdx.x;
    if (t < 16) copy_async_16(shared_address(words + 4 * t), in + 4 * t);
    copy_async_commit();
    copy_async_wait<0>();
    out[t] = words[63 - t];
}
PLANTED(wait_without_barrier)

BODY(divergent_barrier) {
    const int t = threadIdx.x;
    if (t < 32)
        __syncthreads();
    else
        __syncthreads();
    out[t] = in[t];
}
PLANTED(divergent_barrier)

BODY(exit_before_barrier) {
    const int t = threadIdx.x;
    if (t == 40) return;
    __syncthreads();  // PLANTED: exit_before_barrier
    out[t] = in[t];
}
PLANTED(exit_before_barrier)

BODY(static_overrun) {
    SHARED(float, words, 64);  // PLANTED: static_overrun
    const int t = threadIdx.x;
    words[t == 63 ? 64 : t] = in[t];
    __syncthreads();
    out[t] = words[t % 63];
}
PLANTED(static_overrun)

// Past the bytes that are looked at whenever a thread waits.
BODY(static_overrun_far) {
    SHARED(float, words, 64);  // PLANTED: static_overrun_far
    const int t = threadIdx.x;
    words[t == 63 ? 84 : t] = in[t];
    __syncthreads();
    out[t] = words[t % 63];
}
PLANTED(static_overrun_far)

BODY(dynamic_overrun) {
    DYNAMIC_SHARED(float, words);
    const int t = threadIdx.x;
    words[t == 5 ? 64 : t] = in[t];
    __syncthreads();  // PLANTED: dynamic_overrun
    out[t] = words[t == 5 ? 0 : t];
}
PLANTED(dynamic_overrun)

BODY(shared_exhausted) {
    SHARED(float, words, 64);  // PLANTED: shared_exhausted
    const int t = threadIdx.x;
    words[t] = in[t];
    out[t] = words[t];
}
PLANTED(shared_exhausted)

// Element 64 begins the page behind the buffer.
BODY(global_overrun) {
    const int t = threadIdx.x;
    out[t == 7 ? 64 : t] = in[t];
}
PLANTED(global_overrun)
// For a buffer of 62 elements: the two behind it are in its last 16 bytes.
BODY(global_overrun_near) {
    const int t = threadIdx.x;
    if (t < 63) out[t] = in[t];
}
PLANTED(global_overrun_near)
BODY(global_underrun) {
    const int t = threadIdx.x;
    out[t - 1] = in[t];
}
PLANTED(global_underrun)
BODY(global_read_overrun) {
    const int t = threadIdx.x;
    out[t] = in[t == 9 ? 64 : t];
}
PLANTED(global_read_overrun)

BODY(misaligned_vector) {
    const int t = threadIdx.x;
    if (t < 8) store_vec(out + 8 * t, load_vec(in + 4 * t + 1));  // PLANTED: misaligned_vector
}
PLANTED(misaligned_vector)
BODY(misaligned_copy) {
    SHARED(float, words, 64);
    const int t = threadIdx.x;
    const float* from = in + 4 * t + 2;
    if (t < 8) copy_async_16(shared_address(words + 4 * t), from);  // PLANTED: misaligned_copy
    out[t] = in[t];
}
PLANTED(misaligned_copy)
BODY(misaligned_copy_to) {
    SHARED(float, words, 64);
    const int t = threadIdx.x;
    const float* to = words + 4 * t + 1;
    if (t < 8) copy_async_16(shared_address(to), in + 4 * t);  // PLANTED: misaligned_copy_to
    out[t] = in[t];
}
PLANTED(misaligned_copy_to)
BODY(misaligned_load_matrix) {
    SHARED(float, words, 192);
    const int t = threadIdx.x;
    words[t] = words[t + 64] = words[t + 128] = in[t];
    __syncthreads();
    uint32_t r[4];
    load_matrix_x4(r, shared_address(words + t % 32 * 4 + 2));  // PLANTED: misaligned_load_matrix
    out[t] = __uint_as_float(r[0]);
}
PLANTED(misaligned_load_matrix)
BODY(load_matrix_outside) {
    SHARED(float, words, 64);
    const int t = threadIdx.x;
    words[t] = in[t];
    __syncthreads();
    uint32_t r[1];
    load_matrix_x1(r, shared_address(words + t % 32 * 4));  // PLANTED: load_matrix_outside
    out[t] = __uint_as_float(r[0]);
}
PLANTED(load_matrix_outside)

BODY(mismatched_collectives) {
    const int t = threadIdx.x;
    float x = in[t];
    if (t % 2)
        x += __shfl_xor_sync(ALL_LANES, x, 2);
    else
        x += float(__ballot_sync(ALL_LANES, 1));
    out[t] = x;
}
PLANTED(mismatched_collectives)
BODY(mismatched_masks) {
    const int t = threadIdx.x;
    out[t] = float(__ballot_sync(t % 32 == 0 ? ALL_LANES : 0x0000FFFFu, 1));
}
PLANTED(mismatched_masks)
BODY(shuffle_outside_mask) {
    const int t = threadIdx.x;
    float x = in[t];
    if (t % 32 < 16) x += __shfl_xor_sync(0x0000FFFFu, x, 16);  // PLANTED: shuffle_outside_mask
    out[t] = x;
}
PLANTED(shuffle_outside_mask)
BODY(absent_lane) {
    const int t = threadIdx.x;
    float x = in[t];
    if (t != 3) x += __shfl_xor_sync(ALL_LANES, x, 1);  // PLANTED: absent_lane
    out[t] = x;
}
PLANTED(absent_lane)
BODY(deadlock) {
    const int t = threadIdx.x;
    if (t < 32) named_barrier(1, 64);  // PLANTED: deadlock
    out[t] = in[t];
}
PLANTED(deadlock)

// Not defined in C++: the sanitizer of undefined behaviour says so.
BODY(shift_too_far) {
    const int t = threadIdx.x;
    out[t] = float(1 << (int(in[t] * 0.0f) + 40));
}
PLANTED(shift_too_far)
