// Causal attention without tensor cores: f32, heads of up to 256 elements of any type, and bf16 on
// sm_75. The same operations, operands and saved values as attention.cu and backward.cu (see there;
// delta comes from backward.cu); products and sums in f32, dropout masks the same.
//
// A block of 256 threads takes 64 rows of one head and passes over tiles of 64 of the other side.
// Each product is a small matrix product in the usual way: thread (i, j) of 16 x 16 has rows
// i, i + 16, … and columns j, j + 16, …, 4 x 4 of them, with operands from shared memory, where
// pieces of the rows (64 x 32 or 32 x 64 elements) come one after the other. Weights pass through
// shared memory between the two products. 35 KiB of shared memory whatever the head size.
//
// Bound: FFMA; 2 reads of 16 bytes of shared memory for 16 multiply-adds.
#include "../common/device.cuh"

constexpr int THREADS = 256, TILE = 64, PIECE = 32;
// Floats between rows: 16 bytes more than a piece, so that eight rows lie in different banks.
constexpr int ROW_STRIDE = PIECE + 4, TILE_STRIDE = TILE + 4;

// Rows of one head: row i begins at first + i stride.
template <typename T> struct Rows {
    T* first;
    size_t stride;
    int end, columns;
};

// Rows first to first + ROWS - 1, columns column to column + COLUMNS - 1, zeros where there is
// none, to shared memory with STRIDE floats a row.
template <int ROWS, int COLUMNS, int STRIDE, typename T>
__device__ __forceinline__ void load_piece(float* to, const Rows<const T>& from, int first,
                                           int column) {
    constexpr int STEP = THREADS / COLUMNS;
    const int j = threadIdx.x % COLUMNS, i = threadIdx.x / COLUMNS;
#pragma unroll 4
    for (int row = i; row < ROWS; row += STEP) {
        const bool valid = first + row < from.end && column + j < from.columns;
        to[row * STRIDE + j] =
            valid ? to_float(from.first[(first + row) * from.stride + column + j]) : 0.0f;
    }
}

__device__ __forceinline__ int thread_row() { return threadIdx.x / 16; }
__device__ __forceinline__ int thread_column() { return threadIdx.x % 16; }

__device__ __forceinline__ float dot(const float4& a, const float4& b, float sum) {
    return fmaf(a.x, b.x, fmaf(a.y, b.y, fmaf(a.z, b.z, fmaf(a.w, b.w, sum))));
}

// sums = rows of a times rows of b, over all columns of the head.
template <typename T>
__device__ __forceinline__ void multiply(float (&sums)[4][4], const Rows<const T>& a, int a_first,
                                         const Rows<const T>& b, int b_first, float* pieces) {
    float* a_piece = pieces;
    float* b_piece = pieces + TILE * ROW_STRIDE;
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) sums[i][j] = 0.0f;
#pragma unroll 1
    for (int column = 0; column < a.columns; column += PIECE) {
        __syncthreads();  // nobody uses the pieces any more
        load_piece<TILE, PIECE, ROW_STRIDE>(a_piece, a, a_first, column);
        load_piece<TILE, PIECE, ROW_STRIDE>(b_piece, b, b_first, column);
        __syncthreads();
#pragma unroll 2
        for (int k = 0; k < PIECE; k += 4) {
            float4 x[4], y[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int row = thread_row() + 16 * i, other = thread_column() + 16 * i;
                x[i] = *reinterpret_cast<const float4*>(a_piece + row * ROW_STRIDE + k);
                y[i] = *reinterpret_cast<const float4*>(b_piece + other * ROW_STRIDE + k);
            }
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) sums[i][j] = dot(x[i], y[j], sums[i][j]);
        }
    }
}

// sums[p] (64 x 64 of the head's columns from 64 p on) += x (64 x 64, in shared memory) times the
// 64 rows of b from `first` on. Thread columns are here 4 j to 4 j + 3.
template <int PARTS, typename T>
__device__ __forceinline__ void add_product(float (&sums)[PARTS][4][4], const float* x,
                                            const Rows<const T>& b, int first, float* piece) {
#pragma unroll
    for (int p = 0; p < PARTS; p++) {
        if (p * TILE >= b.columns) break;
#pragma unroll 1
        for (int half = 0; half < TILE; half += PIECE) {
            __syncthreads();  // x is there, and nobody uses the piece any more
            load_piece<PIECE, TILE, TILE_STRIDE>(piece, b, first + half, p * TILE);
            __syncthreads();
#pragma unroll 2
            for (int k = 0; k < PIECE; k += 4) {
                float4 row[4];
#pragma unroll
                for (int i = 0; i < 4; i++)
                    row[i] = *reinterpret_cast<const float4*>(
                        x + (thread_row() + 16 * i) * TILE_STRIDE + half + k);
#pragma unroll
                for (int l = 0; l < 4; l++) {
                    const float4 y = *reinterpret_cast<const float4*>(
                        piece + (k + l) * TILE_STRIDE + 4 * thread_column());
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        const float w = l == 0   ? row[i].x
                                        : l == 1 ? row[i].y
                                        : l == 2 ? row[i].z
                                                 : row[i].w;
                        sums[p][i][0] = fmaf(w, y.x, sums[p][i][0]);
                        sums[p][i][1] = fmaf(w, y.y, sums[p][i][1]);
                        sums[p][i][2] = fmaf(w, y.z, sums[p][i][2]);
                        sums[p][i][3] = fmaf(w, y.w, sums[p][i][3]);
                    }
                }
            }
        }
    }
}

template <int PARTS, typename T>
__device__ __forceinline__ void store(const Rows<T>& to, int first,
                                      const float (&sums)[PARTS][4][4],
                                      const float (&factor)[4]) {
#pragma unroll
    for (int p = 0; p < PARTS; p++)
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int row = first + thread_row() + 16 * i;
                const int column = p * TILE + 4 * thread_column() + j;
                if (row < to.end && column < to.columns)
                    to.first[row * to.stride + column] = from_float<T>(sums[p][i][j] * factor[i]);
            }
}

template <int PARTS> __device__ __forceinline__ void clear(float (&sums)[PARTS][4][4]) {
#pragma unroll
    for (int p = 0; p < PARTS; p++)
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) sums[p][i][j] = 0.0f;
}

// Of the 16 threads that share rows.
__device__ __forceinline__ float row_max(float x) {
#pragma unroll
    for (int lanes = 8; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, lanes));
    return x;
}
__device__ __forceinline__ float row_sum(float x) {
#pragma unroll
    for (int lanes = 8; lanes > 0; lanes /= 2) x += __shfl_xor_sync(ALL_LANES, x, lanes);
    return x;
}

// The head and the tile of a block, and its parts of packed tensors.
struct Place {
    int time, head_size, head, tile;
    size_t first_token, row, channels;

    __device__ __forceinline__ Place(int time, int heads, int head_size)
        : time(time), head_size(head_size) {
        const int tiles = (time + TILE - 1) / TILE, both = blockIdx.x / tiles;
        tile = blockIdx.x % tiles;
        head = both % heads;
        first_token = size_t(both / heads) * time;
        row = size_t(both) * time;
        channels = size_t(heads) * head_size;
    }
    // Part `part` of `parts` in a tensor (B, T, parts C).
    template <typename T> __device__ __forceinline__ Rows<T> rows(T* x, int parts, int part) const {
        const size_t stride = parts * channels;
        return Rows<T>{x + first_token * stride + part * channels + size_t(head) * head_size,
                       stride, time, head_size};
    }
};

// Bit 4 i + j is set where the thread's weight (i, j) is kept. Rows are queries and columns keys,
// or the other way round if KEYS. One word after the other: 16 at once take too many registers.
template <bool KEYS>
__device__ __forceinline__ unsigned kept(const Dropout& dropout, const Place& place, int first,
                                         int other) {
    if (!dropout.drops()) return ~0u;
    unsigned bits = 0;
#pragma unroll 1
    for (int bit = 0; bit < 16; bit++) {
        const int row = first + thread_row() + 16 * (bit / 4);
        const int column = other + thread_column() + 16 * (bit % 4);
        const size_t query = place.row + (KEYS ? column : row);
        const float factor = dropout.factor_at(query * place.time + (KEYS ? row : column));
        bits |= unsigned(factor != 0.0f) << bit;
    }
    return bits;
}

// Shared memory: two pieces (64, 32 + 4), weights (64, 64 + 4).
constexpr int PIECES = 2 * TILE * ROW_STRIDE, WEIGHTS = TILE * TILE_STRIDE;

template <typename T, int PARTS>
__device__ __forceinline__ void
attention_general_forward(T* out, float* lse, const T* qkv, int time, int heads, int head_size,
                          float scale, const unsigned* at, unsigned key_0, unsigned key_1,
                          unsigned dropout_place, unsigned threshold, float keep) {
    SHARED(float, pieces, PIECES);
    SHARED(float, weights, WEIGHTS);
    const Dropout dropout = Dropout::of(at, key_0, key_1, dropout_place, threshold, keep);
    const Place place(time, heads, head_size);
    const auto q = place.rows(qkv, 3, 0), k = place.rows(qkv, 3, 1), v = place.rows(qkv, 3, 2);
    const int tiles = (time + TILE - 1) / TILE, first = (tiles - 1 - place.tile) * TILE;

    float sums[PARTS][4][4], largest[4], total[4];
    clear(sums);
#pragma unroll
    for (int i = 0; i < 4; i++) largest[i] = -INFINITY, total[i] = 0.0f;
#pragma unroll 1
    for (int key = 0; key <= first; key += TILE) {
        float s[4][4];
        multiply(s, q, first, k, key, pieces);
        const unsigned mask = kept<false>(dropout, place, first, key);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int query = first + thread_row() + 16 * i;
            float top = largest[i];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const bool hidden = key + thread_column() + 16 * j > query;
                s[i][j] = hidden ? -INFINITY : s[i][j] * scale;
                top = fmaxf(top, s[i][j]);
            }
            top = row_max(top);
            const float factor = expf(largest[i] - top);
            largest[i] = top;
            total[i] *= factor;
#pragma unroll
            for (int p = 0; p < PARTS; p++)
#pragma unroll
                for (int j = 0; j < 4; j++) sums[p][i][j] *= factor;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int other = thread_column() + 16 * j;
                float p = expf(s[i][j] - top);
                total[i] += p;
                p *= mask >> (4 * i + j) & 1 ? keep : 0.0f;
                weights[(thread_row() + 16 * i) * TILE_STRIDE + other] = p;
            }
        }
        add_product(sums, weights, v, key, pieces);
    }
    float factor[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int query = first + thread_row() + 16 * i;
        const float sum = row_sum(total[i]);
        factor[i] = 1.0f / sum;
        if (thread_column() == 0 && query < time) lse[place.row + query] = largest[i] + logf(sum);
    }
    store(place.rows(out, 1, 0), first, sums, factor);
}

// KEYS: dk and dv of a tile of keys; else dq of a tile of queries. As attention_backward.
template <typename T, int PARTS, bool KEYS>
__device__ __forceinline__ void
attention_general_backward(T* dqkv, const T* dout, const T* qkv, const float* lse,
                           const float* delta, int time, int heads, int head_size, float scale,
                           const unsigned* at, unsigned key_0, unsigned key_1,
                           unsigned dropout_place, unsigned threshold, float keep) {
    SHARED(float, pieces, PIECES);
    SHARED(float, weights, WEIGHTS);
    const Dropout dropout = Dropout::of(at, key_0, key_1, dropout_place, threshold, keep);
    const Place place(time, heads, head_size);
    const auto q = place.rows(qkv, 3, 0), k = place.rows(qkv, 3, 1), v = place.rows(qkv, 3, 2);
    const auto dout_rows = place.rows(dout, 1, 0);
    const int tiles = (time + TILE - 1) / TILE;
    const int first = (KEYS ? place.tile : tiles - 1 - place.tile) * TILE;
    const int begin = KEYS ? first : 0, end = KEYS ? time : first + 1;

    float sums1[PARTS][4][4], sums2[KEYS ? PARTS : 1][4][4];
    clear(sums1);
    clear(sums2);
#pragma unroll 1
    for (int other = begin; other < end; other += TILE) {
        float s[4][4], ds[4][4];
        multiply(s, KEYS ? k : q, first, KEYS ? q : k, other, pieces);
        multiply(ds, KEYS ? v : dout_rows, first, KEYS ? dout_rows : v, other, pieces);
        const unsigned mask = kept<KEYS>(dropout, place, first, other);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int row = first + thread_row() + 16 * i;
                const int column = other + thread_column() + 16 * j;
                const int query = KEYS ? column : row, key = KEYS ? row : column;
                float p = 0.0f, ds_dp = 0.0f;
                if (query < time && key <= query) {
                    const size_t at = place.row + query;
                    const float factor = mask >> (4 * i + j) & 1 ? keep : 0.0f;
                    p = expf(s[i][j] * scale - lse[at]);
                    ds_dp = p * (factor * ds[i][j] - delta[at]) * scale;
                    p *= factor;
                }
                ds[i][j] = ds_dp;
                weights[(thread_row() + 16 * i) * TILE_STRIDE + thread_column() + 16 * j] =
                    KEYS ? p : ds_dp;
            }
        if constexpr (KEYS) {
            add_product(sums2, weights, dout_rows, other, pieces);
            __syncthreads();  // nobody uses the weights any more
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    weights[(thread_row() + 16 * i) * TILE_STRIDE + thread_column() + 16 * j] =
                        ds[i][j];
        }
        add_product(sums1, weights, KEYS ? q : k, other, pieces);
    }
    const float one[4] = {1.0f, 1.0f, 1.0f, 1.0f};
    store(place.rows(dqkv, 3, KEYS ? 1 : 0), first, sums1, one);
    if constexpr (KEYS) store(place.rows(dqkv, 3, 2), first, sums2, one);
}

#define FORWARD(T, dtype, size, PARTS)                                                            \
    KERNEL_BOUNDS(attention_general_forward_##size##_##dtype, THREADS, (PARTS == 1 ? 2 : 1),      \
           (T * out, float* lse, const T* qkv, int time, int heads, int head_size, float scale,   \
            const unsigned* at, unsigned key_0, unsigned key_1, unsigned place,                   \
            unsigned threshold, float keep),                                                      \
           (out, lse, qkv, time, heads, head_size, scale, at, key_0, key_1, place, threshold,     \
            keep),                                                                                \
           attention_general_forward<T, PARTS>)
#define BACKWARD(name, T, PARTS, KEYS)                                                            \
    KERNEL_BOUNDS(name, THREADS, 1,                                                               \
           (T * dqkv, const T* dout, const T* qkv, const float* lse, const float* delta,          \
            int time, int heads, int head_size, float scale, const unsigned* at, unsigned key_0,  \
            unsigned key_1, unsigned place, unsigned threshold, float keep),                      \
           (dqkv, dout, qkv, lse, delta, time, heads, head_size, scale, at, key_0, key_1, place,  \
            threshold, keep),                                                                     \
           attention_general_backward<T, PARTS, KEYS>)
#define GENERAL(T, dtype, size, PARTS)                                                            \
    FORWARD(T, dtype, size, PARTS)                                                                \
    BACKWARD(attention_general_backward_keys_##size##_##dtype, T, PARTS, true)                    \
    BACKWARD(attention_general_backward_queries_##size##_##dtype, T, PARTS, false)
#define GENERAL_SIZES(T, dtype)                                                                   \
    GENERAL(T, dtype, 64, 1)                                                                      \
    GENERAL(T, dtype, 128, 2)                                                                     \
    GENERAL(T, dtype, 256, 4)
GENERAL_SIZES(float, f32)
GENERAL_SIZES(bf16, bf16)
GENERAL(f16, f16, 256, 4)
