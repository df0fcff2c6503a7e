// Products of 16-bit matrices on tensor cores, summed in f32, and what follows them (mod.rs):
// matmul_forward: out (M, N) = x (M, K) weight (N, K)^T; backward_input: dx (M, K) = dout (M, N)
// weight (N, K); backward_weight: dweight (N, K) in f32 from dout (M, N)^T x (M, K).
// Each computes out = scale * product (+ bias) (+ other), other = out for +=, or a GELU; `to_f32`
// writes f32. Nothing else is saved.
// Layout: row-major, dense, any sizes. A block makes a tile of 128x128 (or 64x64 where these are
// too few), its warps 64x64 (32x32); operands come through a ring of 3 stages of 32 terms by
// cp.async, swizzled (tile.cuh); fragments are read one slice ahead of the mma. The sums go
// through shared memory to stores of whole 16-byte vectors (epilogue.cuh). backward_weight may
// cut the sum over M in parts, which matmul_sum_parts adds up in order.
// Bound: tensor cores, 2 M N K FLOP. A warp of 64x64 reads 4 KiB of shared memory for 64 mma, half
// of what an SM of sm_80 delivers in that time, and a block writes 16 KiB for 1024.
#include "epilogue.cuh"
#include "tile.cuh"

enum Product { FORWARD, BACKWARD_INPUT, BACKWARD_WEIGHT };

// part_depth, a multiple of DEPTH, is what each blockIdx.y sums up, to a matrix of its own.
template <typename T, typename Out, Product PRODUCT, int TILE, int WARP_TILE>
__device__ __forceinline__ void matmul(Out* out, Out* pre, const T* a, const T* b, const T* bias,
                                       const Out* other, int rows, int cols, int depth,
                                       int part_depth, int kind, float scale) {
    constexpr int WARPS = TILE / WARP_TILE, THREADS = WARPS * WARPS * 32, SLICES = DEPTH / 16;
    constexpr int BLOCKS = WARP_TILE / 16;  // of 16 lines
    using Left = Operand<T, PRODUCT != BACKWARD_WEIGHT, TILE, THREADS, LEFT>;
    using Right = Operand<T, PRODUCT == FORWARD, TILE, THREADS, RIGHT>;
    constexpr int STAGE = Left::BYTES + Right::BYTES;
    DYNAMIC_SHARED(unsigned char, memory);

    const uint2 tile = tile_of_block(rows, cols, TILE, TILE);
    const int row = tile.x * TILE, col = tile.y * TILE;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int warp_row = warp / WARPS * WARP_TILE, warp_col = warp % WARPS * WARP_TILE;
    const int from = blockIdx.y * part_depth, to = min(depth, from + part_depth);
    const int steps = (to - from + DEPTH - 1) / DEPTH;
    Left left;
    Right right;
    left.start(a, rows, depth, row, from, to, warp_row);
    right.start(b, cols, depth, col, from, to, warp_col);

    float sums[BLOCKS][2 * BLOCKS][4];
#pragma unroll
    for (int i = 0; i < BLOCKS; i++)
#pragma unroll
        for (int j = 0; j < 2 * BLOCKS; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) sums[i][j][e] = 0.0f;

#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < steps) {
            left.fetch(memory + s * STAGE);
            right.fetch(memory + s * STAGE + Left::BYTES);
            left.deposit(memory + s * STAGE);
            right.deposit(memory + s * STAGE + Left::BYTES);
        }
        copy_async_commit();
    }
    copy_async_wait<STAGES - 2>();
    __syncthreads();

    uint32_t a_next[2][BLOCKS][4], b_next[2][BLOCKS][4];
    const uint32_t ring = shared_address(memory);
    int read = 0, write = (STAGES - 1) * STAGE;  // the stages' offsets
    if (steps > 0) {
#pragma unroll
        for (int i = 0; i < BLOCKS; i++) {
            left.fragments(a_next[0][i], ring, i, 0);
            right.fragments(b_next[0][i], ring + Left::BYTES, i, 0);
        }
    }
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
        const bool more = step + STAGES - 1 < steps;
        const int written = write;
#pragma unroll
        for (int slice = 0; slice < SLICES; slice++) {
            if (slice == SLICES - 1) {
                if (!ASYNC && more) {
                    left.deposit(memory + written);
                    right.deposit(memory + written + Left::BYTES);
                }
                copy_async_wait<STAGES - 2>();
                // The next stage is there, and no warp reads the one before it any more.
                __syncthreads();
                read = read == (STAGES - 1) * STAGE ? 0 : read + STAGE;
            }
            const int next = (slice + 1) % SLICES;
            if (slice < SLICES - 1 || step + 1 < steps) {
#pragma unroll
                for (int i = 0; i < BLOCKS; i++) {
                    left.fragments(a_next[(slice + 1) % 2][i], ring + read, i, next);
                    right.fragments(b_next[(slice + 1) % 2][i], ring + read + Left::BYTES, i, next);
                }
            }
            if (slice == 0) {
                if (more) {
                    left.fetch(memory + write);
                    right.fetch(memory + write + Left::BYTES);
                    write = write == (STAGES - 1) * STAGE ? 0 : write + STAGE;
                }
                copy_async_commit();
            }
#pragma unroll
            for (int i = 0; i < BLOCKS; i++)
#pragma unroll
                for (int j = 0; j < 2 * BLOCKS; j++) {
                    const uint32_t(&pair)[4] = b_next[slice % 2][j / 2];
                    mma_m16n8k16(sums[i][j], a_next[slice % 2][i],
                                 {pair[j % 2 * 2], pair[j % 2 * 2 + 1]}, T());
                }
        }
    }
    copy_async_wait<0>();
    __syncthreads();

    // 32 rows at a time, or 16 where the ring is too small for these of all warps.
    constexpr int STRIDE = STAGED_STRIDE<WARP_TILE>, WARP_COUNT = WARPS * WARPS;
    constexpr int STAGED =
        STAGES * STAGE >= WARP_COUNT * 32 * STRIDE * int(sizeof(float)) ? 32 : 16;
    static_assert(STAGES * STAGE >= WARP_COUNT * STAGED * STRIDE * int(sizeof(float)), "fits");
    float* staged = reinterpret_cast<float*>(memory) + warp * STAGED * STRIDE;
    out += size_t(blockIdx.y) * rows * cols;
    const auto epilogue = Epilogue<T, Out>::of(out, pre, bias, other, rows, cols, kind, scale);
#pragma unroll
    for (int first = 0; first < WARP_TILE; first += STAGED) {
        float* target = staged + lane / 4 * STRIDE + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < STAGED / 16; i++)
#pragma unroll
            for (int j = 0; j < 2 * BLOCKS; j++) {
                const float(&d)[4] = sums[first / 16 + i][j];
                float* at = target + i * 16 * STRIDE + j * 8;
                *reinterpret_cast<float2*>(at) = make_float2(d[0], d[1]);
                *reinterpret_cast<float2*>(at + 8 * STRIDE) = make_float2(d[2], d[3]);
            }
        __syncwarp();
        drain<STAGED, WARP_TILE, PRODUCT != BACKWARD_WEIGHT>(
            epilogue, staged, row + warp_row + first, col + warp_col, lane);
        __syncwarp();
    }
}

#define MATMUL_TILE(what, T, Out, PRODUCT, suffix)                                               \
    KERNEL_BOUNDS(matmul_##what##_##suffix, 128, 2,                                              \
                  (Out * out, Out* pre, const T* a, const T* b, const T* bias, const Out* other, \
                   int rows, int cols, int depth, int part_depth, int kind, float scale),        \
                  (out, pre, a, b, bias, other, rows, cols, depth, part_depth, kind, scale),     \
                  matmul<T, Out, PRODUCT, 128, 64>)                                              \
    KERNEL_BOUNDS(matmul_##what##_small_##suffix, 128, 4,                                        \
                  (Out * out, Out* pre, const T* a, const T* b, const T* bias, const Out* other, \
                   int rows, int cols, int depth, int part_depth, int kind, float scale),        \
                  (out, pre, a, b, bias, other, rows, cols, depth, part_depth, kind, scale),     \
                  matmul<T, Out, PRODUCT, 64, 32>)
#define MATMUL(T, suffix)                                                                        \
    MATMUL_TILE(forward, T, T, FORWARD, suffix)                                                  \
    MATMUL_TILE(forward_to_f32, T, float, FORWARD, suffix)                                       \
    MATMUL_TILE(backward_input, T, T, BACKWARD_INPUT, suffix)                                    \
    MATMUL_TILE(backward_weight, T, float, BACKWARD_WEIGHT, suffix)
#if DEVICE_HAS_BF16_MMA
MATMUL(bf16, bf16)
#endif
MATMUL(f16, f16)
