// The operands of a product of 16-bit types in shared memory: how tiles get there and how warps
// take fragments of mma from them. Used by matmul.cu.
#pragma once
#include "../common/device.cuh"

// Terms of the sums that lie in shared memory at a time for each stage of the ring.
constexpr int DEPTH = 32;

// Copies to shared memory complete behind the back of the threads from sm_80 on; before, they
// wait in registers while the warps multiply, and two stages are enough.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr bool ASYNC = false;
constexpr int STAGES = 2;
#else
constexpr bool ASYNC = true;
constexpr int STAGES = 3;
#endif

// The two places of an operand in out = left . right.
enum Side { LEFT, RIGHT };

// Element (line, d) of an operand with `lines` rows of the left or columns of the right factor and
// `depth` terms lies at line * depth + d if ALONG_DEPTH, else at d * lines + line. A block takes
// LINES lines and DEPTH terms at a time, in shared memory in rows of 16-byte chunks:
// - ALONG_DEPTH: a row for each line, 4 chunks of 8 terms. Two rows fill the 32 banks; chunk c of
//   row r lies at place c ^ (r / 2 % 4), so the same chunk of 8 rows in a row, which is what
//   ldmatrix reads at a time, lies in 8 different places of the 8 groups of 4 banks.
// - else: a row for each term, LINES / 8 chunks of 8 lines. 8 or 16 chunks fill the banks once or
//   twice; chunk c of row r lies at place c ^ (r % 8): again 8 rows, 8 places.
// Eight threads in turn write 8 chunks of one row or 4 of two, which no permutation in the row
// brings into one bank either.
template <typename T, bool ALONG_DEPTH, int LINES, int THREADS, Side SIDE> struct Operand {
    static constexpr int BYTES = LINES * DEPTH * 2;
    static constexpr int ROW_CHUNKS = ALONG_DEPTH ? DEPTH / 8 : LINES / 8;
    static constexpr int ROW_STEP = THREADS / ROW_CHUNKS;  // rows between a thread's chunks
    static constexpr int COUNT = LINES * DEPTH / 8 / THREADS;
    static constexpr int HELD = ASYNC ? 1 : COUNT;
    static_assert(ROW_STEP % 8 == 0, "a thread's chunks lie at the same place of their rows");
    static_assert(ROW_CHUNKS >= 4 && COUNT * THREADS == LINES * DEPTH / 8, "whole chunks");

    const T* source;   // of the thread's first chunk of the next tile
    size_t row_bytes;  // ROW_STEP rows of the source
    int lines_left;    // from the thread's first line
    int terms_left;    // from the thread's first term of the next tile
    int target;        // the thread's first chunk in a stage
    int lane_chunk;    // the row and chunk that the lane gives ldmatrix
    bool vectors;      // rows of the source start at multiples of 16 bytes
    uint4 held[HELD];

    __device__ __forceinline__ static int place(int row, int chunk) {
        const int moved = ALONG_DEPTH ? chunk ^ (row / 2 % 4) : chunk ^ (row % 8);
        return (row * ROW_CHUNKS + moved) * 16;
    }

    // The operand's lines from `first` on, its terms from `from` to `to`; the warp takes lines from
    // `warp_first` of these on.
    __device__ __forceinline__ void start(const T* matrix, int lines, int depth, int first,
                                          int from, int to, int warp_first) {
        const int row = threadIdx.x / ROW_CHUNKS, chunk = threadIdx.x % ROW_CHUNKS;
        const int width = ALONG_DEPTH ? depth : lines;
        const int line = first + (ALONG_DEPTH ? row : chunk * 8);
        const int term = from + (ALONG_DEPTH ? chunk * 8 : row);
        source = matrix + (ALONG_DEPTH ? size_t(line) * width + term : size_t(term) * width + line);
        row_bytes = size_t(ROW_STEP) * width * sizeof(T);
        lines_left = lines - line;
        terms_left = to - term;
        target = place(row, chunk);
        vectors = width % 8 == 0 && is_vector_aligned(matrix);

        const int lane = threadIdx.x % 32;
        // The order of the four 8x8 matrices in the fragments of mma, see device.cuh.
        const bool rows_first = ALONG_DEPTH == (SIDE == LEFT);
        const int lane_row = rows_first ? lane % 16 : lane % 8 + lane / 16 * 8;
        const int half = rows_first ? lane / 16 : lane / 8 % 2;
        lane_chunk = ALONG_DEPTH ? place(warp_first + lane_row, half)
                                 : place(lane_row, warp_first / 8 + half);
    }

    // Starts the next tile on its way into `stage`; zeros beyond the edges.
    __device__ __forceinline__ void fetch(unsigned char* stage SITE) {
        if (vectors) {
            const uint32_t to = shared_address(stage PASS_SITE) + target;
            const char* from = reinterpret_cast<const char*>(source);
#pragma unroll
            for (int i = 0; i < COUNT; i++) {
                const int line = ALONG_DEPTH ? i * ROW_STEP : 0;
                const int term = ALONG_DEPTH ? 0 : i * ROW_STEP;
                const bool valid = line < lines_left && term < terms_left;
                const char* chunk = from + i * row_bytes;
                if constexpr (ASYNC)
                    copy_async_16(to + i * ROW_STEP * ROW_CHUNKS * 16, chunk, valid PASS_SITE);
                else
                    held[i] = valid ? *reinterpret_cast<const uint4*>(chunk)
                                    : make_uint4(0, 0, 0, 0);
            }
        } else {
#pragma unroll 1
            for (int i = 0; i < COUNT; i++) fetch_elements(stage, i);
        }
        source += ALONG_DEPTH ? size_t(DEPTH) : COUNT * (row_bytes / sizeof(T));
        terms_left -= DEPTH;
    }
    // Chunk i element by element, at once.
    __device__ __forceinline__ void fetch_elements(unsigned char* stage, int i) {
        const T* from = source + i * (row_bytes / sizeof(T));
        const int lines = lines_left - (ALONG_DEPTH ? i * ROW_STEP : 0);
        const int terms = terms_left - (ALONG_DEPTH ? 0 : i * ROW_STEP);
        Vec<T> chunk;
#pragma unroll
        for (int e = 0; e < 8; e++)
            chunk[e] = (ALONG_DEPTH ? lines > 0 && e < terms : terms > 0 && e < lines)
                           ? from[e]
                           : from_float<T>(0.0f);
        store_vec(reinterpret_cast<T*>(stage + target + i * ROW_STEP * ROW_CHUNKS * 16), chunk);
    }
    // Puts what was fetched into registers into its stage.
    __device__ __forceinline__ void deposit(unsigned char* stage) const {
        if constexpr (!ASYNC) {
            if (!vectors) return;
#pragma unroll
            for (int i = 0; i < COUNT; i++)
                *reinterpret_cast<uint4*>(stage + target + i * ROW_STEP * ROW_CHUNKS * 16) =
                    held[i];
        }
    }

    // The fragments of the warp's 16 lines from 16 i on, terms from 16 slice on. Left: a[4] of
    // one mma. Right: b[2] of two mma, columns 0-7 and 8-15.
    __device__ __forceinline__ void fragments(uint32_t (&r)[4], uint32_t stage, int i,
                                              int slice SITE) const {
        // Offsets that are multiples of the swizzle's period are added; others share no bit with
        // the chunk of the lane but are below its XOR, and are XORed.
        const uint32_t at = ALONG_DEPTH ? stage + (lane_chunk ^ (slice * 32)) + i * 16 * DEPTH * 2
                                        : stage + (lane_chunk ^ (i * 32)) + slice * 16 * LINES * 2;
        if (ALONG_DEPTH)
            load_matrix_x4(r, at PASS_SITE);
        else
            load_matrix_x4_transposed(r, at PASS_SITE);
    }
};
