// Causal attention backward on tensor cores, bf16 and f16, head sizes up to 128: dqkv (B, T, 3C) =
// gradient of qkv, assigned, from dout (B, T, C) and what forward saved (out, lse), the weights
// computed again a tile at a time:
//   p = exp(q k^T / sqrt(hs) - lse), d = factor of dropout, delta (B, H, T) = rowsum(dout out)
//   ds = p (d (dout v^T) - delta) / sqrt(hs)
//   dv = (d p)^T dout, dk = ds^T q, dq = ds k
// Three kernels, no atomics, every element written once: delta; dk and dv by tiles of keys, which
// pass over the queries from the diagonal on; dq by tiles of queries, which pass over the keys up
// to it. That is seven products where five would do if one kernel made dq, too. It would have to
// add dq up in a fixed order, in f32 through memory: 8 hs bytes for each query and tile of keys.
// For 64 keys at 4 TB/s that is twice as long as the two products (4 hs x 64 FLOPs at 300 TFLOP/s),
// for 128 keys as long, and blocks would wait for their turn or need a copy of dq for each tile.
//
// In both kernels a warp owns 16 rows (keys or queries) and computes with the rows as A: scores
// a1 b1^T and weights' gradients a2 b2^T come out in the layout in which they are the next A, so
// weights never pass through shared memory. Two stages of the other side, one barrier a tile.
// Bound: 14 hs FLOPs for each pair on tensor cores (five products: 10); reads of L2 for each pass.
#include "tiles.cuh"

constexpr int DELTA_THREADS = 256;

// delta (B, H, T): a warp takes 32 / LANES rows (b, t, h) of hs elements in turn.
template <typename T>
__device__ __forceinline__ void attention_delta(float* delta, const T* dout, const T* out,
                                                int time, int heads, int head_size,
                                                unsigned long long rows) {
    constexpr int LANES = 8;
    const bool aligned = is_vector_aligned(dout) && is_vector_aligned(out) &&
                         head_size % Vec<T>::size == 0;
    const int lane = threadIdx.x % LANES;
    const size_t row = blockIdx.x * size_t(DELTA_THREADS / LANES) + threadIdx.x / LANES;
    const size_t first = min(row, size_t(rows - 1)) * head_size;
    float sum = 0.0f;
    if (aligned) {
        for (int i = lane * Vec<T>::size; i < head_size; i += LANES * Vec<T>::size) {
            const Vec<T> a = load_vec(dout + first + i), b = load_vec(out + first + i);
#pragma unroll
            for (int k = 0; k < Vec<T>::size; k++) sum = fmaf(to_float(a[k]), to_float(b[k]), sum);
        }
    } else {
        for (int i = lane; i < head_size; i += LANES)
            sum = fmaf(to_float(dout[first + i]), to_float(out[first + i]), sum);
    }
#pragma unroll
    for (int lanes = LANES / 2; lanes > 0; lanes /= 2)
        sum += __shfl_xor_sync(ALL_LANES, sum, lanes);
    if (lane == 0 && row < rows) {
        const size_t token = row / heads, batch = token / time;
        delta[(batch * heads + row % heads) * time + token % time] = sum;
    }
}

// The weights of 16 rows by 8 N columns from their scores s, and the scores' gradients (without
// the factor 1 / sqrt(hs)) from the weights' gradients; s becomes the dropped weights (without
// 1 / (1 - p)), ds the gradients. lse (times log2 e) and delta are of the rows, or of the columns
// if KEYS: then row-wise in shared memory.
template <bool KEYS, bool DROPS, int N>
__device__ __forceinline__ void
differentiate(float (&s)[1][N][4], float (&ds)[1][N][4], const float (&row_lse)[2],
              const float (&row_delta)[2], const float* column_lse, const float* column_delta,
              float scale, float keep, unsigned mask) {
    const int pair = threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < N; n++) {
        float2 lse = make_float2(0.0f, 0.0f), delta = lse;
        if (KEYS) {
            lse = *reinterpret_cast<const float2*>(column_lse + 8 * n + pair);
            delta = *reinterpret_cast<const float2*>(column_delta + 8 * n + pair);
        }
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const float its_lse = KEYS ? (e % 2 ? lse.y : lse.x) : row_lse[e / 2];
            const float its_delta = KEYS ? (e % 2 ? delta.y : delta.x) : row_delta[e / 2];
            const float p = exp2_fast(fmaf(s[0][n][e], scale, -its_lse));
            const bool stays = !DROPS || (mask >> (4 * n + e) & 1);
            const float factor = DROPS ? (stays ? keep : 0.0f) : 1.0f;
            ds[0][n][e] = p * fmaf(ds[0][n][e], factor, -its_delta);
            s[0][n][e] = stays ? p : 0.0f;
        }
    }
}

// The scores of pairs where the query is before the key become -inf.
template <bool KEYS, int N>
__device__ __forceinline__ void hide_future(float (&s)[1][N][4], int first_row, int first_column) {
    const int lane = threadIdx.x % 32;
    const int ahead = first_column + lane % 4 * 2 - first_row - lane / 4;
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int column_minus_row = ahead + 8 * n + e % 2 - e / 2 * 8;
            if (KEYS ? column_minus_row < 0 : column_minus_row > 0) s[0][n][e] = -INFINITY;
        }
}

// KEYS: dk, dv of a tile of keys; else dq of a tile of queries. The block's own rows are a1 (k or
// q) and a2 (v or dout); it passes over tiles of b1 (q or k) and b2 (dout or v).
// Shared memory: a1, a2 (ROWS, D); `stages` times b1, b2 (COLUMNS, D); `stages` times lse and delta
// (COLUMNS), f32, of the queries if KEYS.
template <typename T, int D, int WARPS, int COLUMNS, bool KEYS, bool HOLDS_ROWS, bool DROPS>
__device__ __forceinline__ void
attention_backward(T* dqkv, const T* dout, const T* qkv, const float* lse, const float* delta,
                   int time, int heads, int head_size, float scale, int stages,
                   const unsigned* at, unsigned key_0, unsigned key_1, unsigned dropout_place,
                   unsigned threshold, float keep) {
    constexpr int THREADS = 32 * WARPS, ROWS = 16 * WARPS, N = COLUMNS / 8;
    static_assert(2 * COLUMNS <= THREADS, "a thread stages one element of lse or delta");
    DYNAMIC_SHARED(T, shared);
    T* staged = shared + 2 * ROWS * D;
    float* statistics = reinterpret_cast<float*>(staged + stages * 2 * COLUMNS * D);
    const Dropout dropout = Dropout::of(at, key_0, key_1, dropout_place, threshold, keep);
    const int tiles = (time + ROWS - 1) / ROWS;
    const Place place(time, heads, tiles);
    const int channels = heads * head_size;
    const auto part = [&](int i) {
        return Rows<const T>::of(qkv, place, 3 * channels, i * channels, head_size);
    };
    const auto gradient = [&](int i) {
        return Rows<T>::of(dqkv, place, 3 * channels, i * channels, head_size);
    };
    const auto dout_rows = Rows<const T>::of(dout, place, channels, 0, head_size);

    // Long rows first: the first tile of keys is seen by all, the last tile of queries sees all.
    const int block_row = (KEYS ? place.tile : tiles - 1 - place.tile) * ROWS;
    const int own = threadIdx.x / 32 * 16, first_row = block_row + own;
    const int begin = KEYS ? block_row / COLUMNS * COLUMNS : 0;
    const int end = KEYS ? time : min(block_row + ROWS, time);
    const unsigned lane_at = lane_offset<D>();
    const uint32_t a1 = shared_address(shared + own * D), a2 = a1 + 2 * ROWS * D;
    const float scale_log2 = scale * LOG2_E;

    // lse times log2 e, and delta. Where there is no query, weights and gradients become 0.
    const auto lse_of = [&](int query) {
        return query < time ? lse[place.row + query] * LOG2_E : INFINITY;
    };
    const auto delta_of = [&](int query) {
        return query < time ? delta[place.row + query] : 0.0f;
    };
    float row_lse[2] = {}, row_delta[2] = {};
    if (!KEYS) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int query = first_row + 8 * r + threadIdx.x % 32 / 4;
            row_lse[r] = lse_of(query);
            row_delta[r] = delta_of(query);
        }
    }
    const auto statistic = [&](int column) {
        const int i = threadIdx.x % COLUMNS;
        return KEYS && threadIdx.x < 2 * COLUMNS
                   ? (threadIdx.x < COLUMNS ? lse_of(column + i) : delta_of(column + i))
                   : 0.0f;
    };
    const auto stage_of = [&](int column) { return stages == 2 ? column / COLUMNS % 2 : 0; };
    const auto put_statistic = [&](int column, float x) {
        if (KEYS && threadIdx.x < 2 * COLUMNS)
            statistics[stage_of(column) * (2 * COLUMNS) + threadIdx.x] = x;
    };
    const auto stage = [&](int column) {
        T* to = staged + stage_of(column) * (2 * COLUMNS * D);
        copy_tile<D, COLUMNS, THREADS>(to, part(KEYS ? 0 : 1), column, end);
        copy_tile<D, COLUMNS, THREADS>(to + COLUMNS * D, KEYS ? dout_rows : part(2), column, end);
        copy_async_commit();
    };

    float sum1[1][D / 8][4], sum2[1][KEYS ? D / 8 : 1][4];
    clear(sum1);
    clear(sum2);
    uint32_t held1[HOLDS_ROWS ? D / 16 : 1][1][4], held2[HOLDS_ROWS ? D / 16 : 1][1][4];
    copy_tile<D, ROWS, THREADS>(shared, part(KEYS ? 1 : 0), block_row, time);
    copy_tile<D, ROWS, THREADS>(shared + ROWS * D, KEYS ? part(2) : dout_rows, block_row, time);
    stage(begin);
    put_statistic(begin, statistic(begin));
#pragma unroll 1
    for (int column = begin; column < end; column += COLUMNS) {
        const bool more = column + COLUMNS < end;
        copy_async_wait<0>();
        __syncthreads();  // the tile is there, and nobody uses the other stage any more
        float ahead = 0.0f;
        if (stages == 2 && more) {
            stage(column + COLUMNS);
            ahead = statistic(column + COLUMNS);
        }
        if (HOLDS_ROWS && column == begin) {
#pragma unroll
            for (int i = 0; i < D / 16; i++) {
                load_matrix_x4(held1[HOLDS_ROWS ? i : 0][0], a1 + block_offset<D>(lane_at, 0, i));
                load_matrix_x4(held2[HOLDS_ROWS ? i : 0][0], a2 + block_offset<D>(lane_at, 0, i));
            }
        }
        // Whether any of the warp's rows has to do with any of the columns.
        if (KEYS ? column + COLUMNS > first_row : column < first_row + 16) {
            const uint32_t b1 =
                shared_address(staged) + stage_of(column) * (4 * COLUMNS * D);
            const uint32_t b2 = b1 + 2 * COLUMNS * D;
            const float* column_lse = statistics + stage_of(column) * (2 * COLUMNS);
            float s[1][N][4], ds[1][N][4];
            clear(s);
            clear(ds);
#pragma unroll
            for (int i = 0; i < D / 16; i++) {
                if (HOLDS_ROWS) {
                    multiply_by_rows<D, 1, N, T>(s, held1[HOLDS_ROWS ? i : 0], b1, lane_at, i);
                    multiply_by_rows<D, 1, N, T>(ds, held2[HOLDS_ROWS ? i : 0], b2, lane_at, i);
                } else {
                    uint32_t a[1][4];
                    load_matrix_x4(a[0], a1 + block_offset<D>(lane_at, 0, i));
                    multiply_by_rows<D, 1, N, T>(s, a, b1, lane_at, i);
                    load_matrix_x4(a[0], a2 + block_offset<D>(lane_at, 0, i));
                    multiply_by_rows<D, 1, N, T>(ds, a, b2, lane_at, i);
                }
            }
            if (KEYS ? column < first_row + 15 : column + COLUMNS - 1 > first_row)
                hide_future<KEYS>(s, first_row, column);
            unsigned mask = 0;
            if (DROPS)
                mask = kept<KEYS, N>(dropout, size_t(place.row) * time, time, first_row, column);
            differentiate<KEYS, DROPS>(s, ds, row_lse, row_delta, column_lse,
                                       column_lse + COLUMNS, scale_log2, keep, mask);
            if constexpr (KEYS) add_product<D, 1, N, T>(sum2, s, b2, lane_at);
            add_product<D, 1, N, T>(sum1, ds, b1, lane_at);
        }
        if (stages == 2 && more) put_statistic(column + COLUMNS, ahead);
        if (stages == 1 && more) {
            __syncthreads();  // nobody uses the only stage any more
            stage(column + COLUMNS);
            put_statistic(column + COLUMNS, statistic(column + COLUMNS));
        }
    }

#pragma unroll
    for (int n = 0; n < D / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            sum1[0][n][e] *= scale;
            if constexpr (KEYS && DROPS) sum2[0][n][e] *= keep;
        }
    store_sums<D, 1>(gradient(KEYS ? 1 : 0), first_row, time, shared + own * D, sum1);
    if constexpr (KEYS)
        store_sums<D, 1>(gradient(2), first_row, time, shared + own * D, sum2);
}

#define DELTA(T, dtype)                                                                           \
    KERNEL(attention_delta_##dtype, DELTA_THREADS,                                                \
           (float* delta, const T* dout, const T* out, int time, int heads, int head_size,        \
            unsigned long long rows),                                                             \
           (delta, dout, out, time, heads, head_size, rows), attention_delta<T>)
DELTA(float, f32)
DELTA(bf16, bf16)
DELTA(f16, f16)

#define BACKWARD(name, T, D, COLUMNS, KEYS, HOLDS, DROPS)                                         \
    KERNEL_BOUNDS(name, 128, 2,                                                                   \
                  (T * dqkv, const T* dout, const T* qkv, const float* lse, const float* delta,   \
                   int time, int heads, int head_size, float scale, int stages,                   \
                   const unsigned* at, unsigned key_0, unsigned key_1, unsigned place,            \
                   unsigned threshold, float keep),                                               \
                  (dqkv, dout, qkv, lse, delta, time, heads, head_size, scale, stages, at, key_0, \
                   key_1, place, threshold, keep),                                                \
                  attention_backward<T, D, 4, COLUMNS, KEYS, HOLDS, DROPS>)
// The tiles: as `backward_tiles` in cuda.rs has them.
#define BACKWARDS(T, dtype, drops, DROPS)                                                         \
    BACKWARD(attention_backward_keys##drops##_32_##dtype, T, 32, 32, true, true, DROPS)           \
    BACKWARD(attention_backward_keys##drops##_64_##dtype, T, 64, 32, true, true, DROPS)           \
    BACKWARD(attention_backward_keys##drops##_128_##dtype, T, 128, 16, true, false, DROPS)        \
    BACKWARD(attention_backward_queries##drops##_32_##dtype, T, 32, 64, false, true, DROPS)       \
    BACKWARD(attention_backward_queries##drops##_64_##dtype, T, 64, 64, false, true, DROPS)       \
    BACKWARD(attention_backward_queries##drops##_128_##dtype, T, 128, 32, false, false, DROPS)
BACKWARDS(f16, f16, , false)
BACKWARDS(f16, f16, _dropout, true)
#if DEVICE_HAS_BF16_MMA
BACKWARDS(bf16, bf16, , false)
BACKWARDS(bf16, bf16, _dropout, true)
#endif
