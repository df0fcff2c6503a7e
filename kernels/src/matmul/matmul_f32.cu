// The products of matmul.cu for f32, with fused multiply-adds in full precision: the terms of each
// sum of a part are added in their order.
// Layout: row-major, dense, any sizes. A block makes a tile of 128x128 (or 64x64), a warp 32x64, a
// thread 8x8 in four pieces of 4x4; 16 terms lie in shared memory at a time, the next 16 wait in
// registers meanwhile. Both operands lie there with a row for each term, so that a thread reads
// its lines 16 bytes at a time.
// Bound: FFMA, 2 M N K FLOP. For each 64 a thread reads 4 vectors of shared memory, of which a warp
// sees 2 x 64 and 2 x 128 different bytes, without bank conflicts.
#include "epilogue.cuh"

enum Product { FORWARD, BACKWARD_INPUT, BACKWARD_WEIGHT };

constexpr int DEPTH_F32 = 16;

// LINES lines and DEPTH_F32 terms of an operand, whose element (line, d) lies at line * depth + d
// if ALONG_DEPTH, else at d * lines + line.
template <bool ALONG_DEPTH, int LINES, int THREADS> struct OperandF32 {
    // Rows of the other 4 floats shift each fourth row by 16 banks: two lanes that put 4 terms of
    // one line into 4 rows each, and 16 lines of lanes, meet no bank twice.
    static constexpr int STRIDE = LINES + 4;
    static constexpr int COUNT = LINES * DEPTH_F32 / 4 / THREADS;
    static constexpr int ROW_CHUNKS = LINES / 4;  // of a term, if not ALONG_DEPTH

    const float* matrix;
    size_t width;
    int line, lines, term, to;  // of the thread's first chunk; the ends
    int target;
    bool vectors;
    Vec<float> held[COUNT];

    // Lines and terms from the thread's first chunk to its chunk i.
    static __device__ __forceinline__ constexpr int line_step(int i) {
        return ALONG_DEPTH ? i * (THREADS / 2) % LINES : 0;
    }
    static __device__ __forceinline__ constexpr int term_step(int i) {
        return ALONG_DEPTH ? i * (THREADS / 2) / LINES * 8 : i * (THREADS / ROW_CHUNKS);
    }

    __device__ __forceinline__ void start(const float* from_matrix, int all_lines, int depth,
                                          int first, int from, int end) {
        const int thread = threadIdx.x;
        const int own_line = ALONG_DEPTH ? thread / 2 : thread % ROW_CHUNKS * 4;
        const int own_term = ALONG_DEPTH ? thread % 2 * 4 : thread / ROW_CHUNKS;
        width = ALONG_DEPTH ? depth : all_lines;
        line = first + own_line;
        lines = all_lines;
        term = from + own_term;
        to = end;
        target = own_term * STRIDE + own_line;
        vectors = width % 4 == 0 && is_vector_aligned(from_matrix);
        matrix = from_matrix +
                 (ALONG_DEPTH ? size_t(line) * width + term : size_t(term) * width + line);
    }
    // The next terms into registers; zeros beyond the edges.
    __device__ __forceinline__ void fetch() {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            const int l = line + line_step(i), d = term + term_step(i);
            const float* from = matrix + (ALONG_DEPTH ? line_step(i) * width + term_step(i)
                                                      : term_step(i) * width + line_step(i));
            if (vectors) {
                if (l < lines && d < to)
                    held[i] = load_vec(from);
                else
                    held[i][0] = held[i][1] = held[i][2] = held[i][3] = 0.0f;
            } else {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const bool valid = ALONG_DEPTH ? l < lines && d + e < to
                                                   : l + e < lines && d < to;
                    held[i][e] = valid ? from[e] : 0.0f;
                }
            }
        }
        matrix += ALONG_DEPTH ? size_t(DEPTH_F32) : DEPTH_F32 * width;
        term += DEPTH_F32;
    }
    __device__ __forceinline__ void deposit(float* stage) const {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            float* at = stage + target + term_step(i) * STRIDE + line_step(i);
            if (ALONG_DEPTH) {
#pragma unroll
                for (int e = 0; e < 4; e++) at[e * STRIDE] = held[i][e];
            } else {
                store_vec(at, held[i]);
            }
        }
    }
};

template <Product PRODUCT, int TILE>
__device__ __forceinline__ void matmul_f32(float* out, float* pre, const float* a, const float* b,
                                           const float* bias, const float* other, int rows,
                                           int cols, int depth, int part_depth, int kind,
                                           float scale) {
    constexpr int WARPS_ACROSS = TILE / 64, THREADS = TILE / 32 * WARPS_ACROSS * 32;
    using Left = OperandF32<PRODUCT != BACKWARD_WEIGHT, TILE, THREADS>;
    using Right = OperandF32<PRODUCT == FORWARD, TILE, THREADS>;
    constexpr int SIDE = DEPTH_F32 * Left::STRIDE, STAGE = 2 * SIDE;
    DYNAMIC_SHARED(float, memory);

    const uint2 tile = tile_of_block(rows, cols, TILE, TILE);
    const int row = tile.x * TILE, col = tile.y * TILE;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int warp_row = warp / WARPS_ACROSS * 32, warp_col = warp % WARPS_ACROSS * 64;
    const int lane_row = lane / 8 * 4, lane_col = lane % 8 * 4;
    const int from = blockIdx.y * part_depth, to = min(depth, from + part_depth);
    const int steps = (to - from + DEPTH_F32 - 1) / DEPTH_F32;
    Left left;
    Right right;
    left.start(a, rows, depth, row, from, to);
    right.start(b, cols, depth, col, from, to);
    left.fetch();
    right.fetch();
    left.deposit(memory);
    right.deposit(memory + SIDE);
    __syncthreads();

    float sums[8][8];
#pragma unroll
    for (int i = 0; i < 8; i++)
#pragma unroll
        for (int j = 0; j < 8; j++) sums[i][j] = 0.0f;
    const float* a_lane = memory + warp_row + lane_row;
    const float* b_lane = memory + SIDE + warp_col + lane_col;
    int read = 0;
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
        const bool more = step + 1 < steps;
        if (more) {
            left.fetch();
            right.fetch();
        }
#pragma unroll
        for (int d = 0; d < DEPTH_F32; d++) {
            Vec<float> x[2], y[2];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                x[half] = load_vec(a_lane + read + d * Left::STRIDE + half * 16);
                y[half] = load_vec(b_lane + read + d * Left::STRIDE + half * 32);
            }
#pragma unroll
            for (int i = 0; i < 8; i++)
#pragma unroll
                for (int j = 0; j < 8; j++)
                    sums[i][j] = fmaf(x[i / 4][i % 4], y[j / 4][j % 4], sums[i][j]);
        }
        read = STAGE - read;  // the other stage, which no warp reads since the last barrier
        if (more) {
            left.deposit(memory + read);
            right.deposit(memory + read + SIDE);
        }
        __syncthreads();
    }

    constexpr int STRIDE = STAGED_STRIDE<64>;
    float* staged = memory + warp * 16 * STRIDE;
    out += size_t(blockIdx.y) * rows * cols;
    const auto epilogue =
        Epilogue<float, float>::of(out, pre, bias, other, rows, cols, kind, scale);
#pragma unroll
    for (int half = 0; half < 2; half++) {
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                Vec<float> four;
#pragma unroll
                for (int e = 0; e < 4; e++) four[e] = sums[half * 4 + i][j * 4 + e];
                store_vec(staged + (lane_row + i) * STRIDE + j * 32 + lane_col, four);
            }
        __syncwarp();
        drain<16, 64, PRODUCT != BACKWARD_WEIGHT>(
            epilogue, staged, row + warp_row + half * 16, col + warp_col, lane);
        __syncwarp();
    }
}

#define MATMUL_TILE(name, threads, min_blocks, PRODUCT, TILE)                                    \
    KERNEL_BOUNDS(name, threads, min_blocks,                                                     \
                  (float* out, float* pre, const float* a, const float* b, const float* bias,    \
                   const float* other, int rows, int cols, int depth, int part_depth, int kind,  \
                   float scale),                                                                 \
                  (out, pre, a, b, bias, other, rows, cols, depth, part_depth, kind, scale),     \
                  matmul_f32<PRODUCT, TILE>)
MATMUL_TILE(matmul_forward_f32, 256, 2, FORWARD, 128)
MATMUL_TILE(matmul_forward_small_f32, 64, 6, FORWARD, 64)
MATMUL_TILE(matmul_backward_input_f32, 256, 2, BACKWARD_INPUT, 128)
MATMUL_TILE(matmul_backward_input_small_f32, 64, 6, BACKWARD_INPUT, 64)
// With two blocks, 128 registers, sm_90 spills 56 bytes.
MATMUL_TILE(matmul_backward_weight_f32, 256, 1, BACKWARD_WEIGHT, 128)
MATMUL_TILE(matmul_backward_weight_small_f32, 64, 6, BACKWARD_WEIGHT, 64)
