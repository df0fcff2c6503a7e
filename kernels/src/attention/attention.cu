// Causal attention forward on tensor cores, bf16 and f16, head sizes up to 128 (32, 64 and 128 are
// compiled, others are padded with zeros in shared memory; general.cu has f32 and the rest):
//   out (B, T, C) = dropout(softmax(q k^T / sqrt(hs), causal)) v, assigned
//   lse (B, H, T) = logarithm of the sum of the exponentials of a row's scores, f32, for backward
// qkv (B, T, 3C) is read in place: head h of q at columns h hs, of k at C + h hs, of v at
// 2C + h hs.
//
// A block takes a tile of queries of one head, a warp 16 M rows of it (M = 2: a fragment of keys
// or values serves two mma, which halves the reads of shared memory), and passes over the tiles of
// keys up to its diagonal: scores, online softmax and weights stay in registers. Two stages of
// keys and values: cp.async fills one while the other is used, one barrier a tile. Warps skip
// tiles above their diagonal and mask only those that it crosses. Long rows are started first.
// Dropped weights are left out of the sum with v, not of the softmax's total; 1 / (1 - p) is
// multiplied in at the end.
//
// Bound: 4 hs FLOPs for each pair of a query and a key on tensor cores, one exp2 for each pair
// (at hs = 64, sm_90: as long as the products); bytes: qkv once and out once, the rest from L2.
#include "tiles.cuh"

// Scores (16 M x 8 N) of queries from `first_row` on, of which those that look ahead become -inf.
template <int M, int N>
__device__ __forceinline__ void hide_future(float (&s)[M][N][4], int first_row, int first_key) {
    const int lane = threadIdx.x % 32, group = lane / 4, pair = lane % 4 * 2;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const int row = first_row + 16 * m + group + e / 2 * 8;
                if (first_key + 8 * n + pair + e % 2 > row) s[m][n][e] = -INFINITY;
            }
}

// The online softmax of a lane's 2 M rows: s becomes exp2(scale (s - largest)), the sums over
// earlier tiles are brought to the new largest score. `total` is the lane's part of a row's sum.
template <int M, int N, int D8>
__device__ __forceinline__ void soften(float (&s)[M][N][4], float (&out)[M][D8][4],
                                       float (&largest)[M][2], float (&total)[M][2], float scale) {
#pragma unroll
    for (int m = 0; m < M; m++) {
        float factor[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float top = largest[m][r];
#pragma unroll
            for (int n = 0; n < N; n++) top = fmaxf(top, fmaxf(s[m][n][2 * r], s[m][n][2 * r + 1]));
            top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 1));
            top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 2));
            factor[r] = exp2_fast(scale * (largest[m][r] - top));
            largest[m][r] = top;
            const float shift = scale * top;
            float sum = 0.0f;
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int e = 2 * r; e < 2 * r + 2; e++) {
                    s[m][n][e] = exp2_fast(fmaf(s[m][n][e], scale, -shift));
                    sum += s[m][n][e];
                }
            total[m][r] = fmaf(total[m][r], factor[r], sum);
        }
        // After the first tiles the largest scores rarely change.
        if (__any_sync(ALL_LANES, factor[0] != 1.0f || factor[1] != 1.0f)) {
#pragma unroll
            for (int n = 0; n < D8; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) out[m][n][e] *= factor[e / 2];
        }
    }
}

template <int M, int N>
__device__ __forceinline__ void drop(float (&s)[M][N][4], const Dropout& dropout, size_t weights,
                                     int time, int first_row, int first_key) {
#pragma unroll
    for (int m = 0; m < M; m++) {
        const unsigned mask =
            kept<false, N>(dropout, weights, time, first_row + 16 * m, first_key);
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                if (!(mask >> (4 * n + e) & 1)) s[m][n][e] = 0.0f;
    }
}

// Shared memory: queries (16 M WARPS, D), then `stages` times keys and values (KEYS, D) each.
template <typename T, int D, int M, int WARPS, int KEYS, bool HOLDS_QUERIES, bool DROPS>
__device__ __forceinline__ void attention_forward(T* out, float* lse, const T* qkv, int time,
                                                  int heads, int head_size, float scale,
                                                  int stages, const unsigned* at, unsigned key_0,
                                                  unsigned key_1, unsigned dropout_place,
                                                  unsigned threshold, float keep) {
    constexpr int THREADS = 32 * WARPS, QUERIES = 16 * M * WARPS, N = KEYS / 8;
    DYNAMIC_SHARED(T, shared);
    T* queries = shared;
    T* staged = shared + QUERIES * D;
    const Dropout dropout = Dropout::of(at, key_0, key_1, dropout_place, threshold, keep);
    const int tiles = (time + QUERIES - 1) / QUERIES;
    const Place place(time, heads, tiles);
    const int channels = heads * head_size;
    const auto q = Rows<const T>::of(qkv, place, 3 * channels, 0, head_size);
    const auto k = Rows<const T>::of(qkv, place, 3 * channels, channels, head_size);
    auto v = k;
    v.first += channels;

    const int block_row = (tiles - 1 - place.tile) * QUERIES;
    const int own = threadIdx.x / 32 * 16 * M, first_row = block_row + own;
    const int end = min(block_row + QUERIES, time);
    const unsigned lane_at = lane_offset<D>();
    const uint32_t own_queries = shared_address(queries + own * D);
    const float scale_log2 = scale * LOG2_E;

    float sums[M][D / 8][4], largest[M][2], total[M][2];
    uint32_t held[HOLDS_QUERIES ? D / 16 : 1][M][4];
    clear(sums);
#pragma unroll
    for (int m = 0; m < M; m++)
        for (int r = 0; r < 2; r++) largest[m][r] = -INFINITY, total[m][r] = 0.0f;

    const auto stage = [&](int key) {
        T* to = staged + (stages == 2 ? key / KEYS % 2 : 0) * (2 * KEYS * D);
        copy_tile<D, KEYS, THREADS>(to, k, key, end);
        copy_tile<D, KEYS, THREADS>(to + KEYS * D, v, key, end);
        copy_async_commit();
    };
    copy_tile<D, QUERIES, THREADS>(queries, q, block_row, end);
    stage(0);
#pragma unroll 1
    for (int key = 0; key < end; key += KEYS) {
        copy_async_wait<0>();
        __syncthreads();  // the tile is there, and nobody uses the other stage any more
        if (stages == 2 && key + KEYS < end) stage(key + KEYS);
        if (HOLDS_QUERIES && key == 0) {
#pragma unroll
            for (int i = 0; i < D / 16; i++)
#pragma unroll
                for (int m = 0; m < M; m++)
                    load_matrix_x4(held[i][m], own_queries + block_offset<D>(lane_at, 16 * m, i));
        }
        if (key < first_row + 16 * M) {
            const uint32_t keys = shared_address(staged) +
                                  (stages == 2 ? key / KEYS % 2 : 0) * (4 * KEYS * D);
            float s[M][N][4];
            clear(s);
#pragma unroll
            for (int i = 0; i < D / 16; i++) {
                if (HOLDS_QUERIES) {
                    multiply_by_rows<D, M, N, T>(s, held[HOLDS_QUERIES ? i : 0], keys, lane_at, i);
                } else {
                    uint32_t a[M][4];
#pragma unroll
                    for (int m = 0; m < M; m++)
                        load_matrix_x4(a[m], own_queries + block_offset<D>(lane_at, 16 * m, i));
                    multiply_by_rows<D, M, N, T>(s, a, keys, lane_at, i);
                }
            }
            if (key + KEYS - 1 > first_row) hide_future(s, first_row, key);
            soften(s, sums, largest, total, scale_log2);
            if (DROPS) drop(s, dropout, size_t(place.row) * time, time, first_row, key);
            add_product<D, M, N, T>(sums, s, keys + 2 * KEYS * D, lane_at);
        }
        if (stages == 1 && key + KEYS < end) {
            __syncthreads();  // nobody uses the only stage any more
            stage(key + KEYS);
        }
    }

    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float sum = total[m][r];
            sum += __shfl_xor_sync(ALL_LANES, sum, 1);
            sum += __shfl_xor_sync(ALL_LANES, sum, 2);
            const int row = first_row + 16 * m + 8 * r + lane / 4;
            if (lane % 4 == 0 && row < time)
                lse[place.row + row] = fmaf(log2_fast(sum), LN_2, largest[m][r] * scale);
            const float factor = (DROPS ? keep : 1.0f) / sum;
#pragma unroll
            for (int n = 0; n < D / 8; n++)
                sums[m][n][2 * r] *= factor, sums[m][n][2 * r + 1] *= factor;
        }
    const auto rows = Rows<T>::of(out, place, channels, 0, head_size);
    store_sums<D, M>(rows, first_row, time, queries + own * D, sums);
}

#define FORWARD(name, T, D, M, WARPS, KEYS, HOLDS, DROPS)                                         \
    KERNEL_BOUNDS(name, 32 * WARPS, 2,                                                            \
           (T * out, float* lse, const T* qkv, int time, int heads, int head_size, float scale,   \
            int stages, const unsigned* at, unsigned key_0, unsigned key_1, unsigned place,       \
            unsigned threshold, float keep),                                                      \
           (out, lse, qkv, time, heads, head_size, scale, stages, at, key_0, key_1, place,        \
            threshold, keep),                                                                     \
           attention_forward<T, D, M, WARPS, KEYS, HOLDS, DROPS>)
// Whether fragments of the queries stay in registers. At hs = 64 on sm_100 and later they do not
// fit; at 128 nowhere.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr bool HOLDS_64 = false;
#else
constexpr bool HOLDS_64 = true;
#endif
// The tiles: as `forward_tiles` in cuda.rs has them.
#define FORWARDS(T, dtype)                                                                        \
    FORWARD(attention_forward_32_##dtype, T, 32, 2, 4, 64, true, false)                           \
    FORWARD(attention_forward_64_##dtype, T, 64, 2, 4, 64, HOLDS_64, false)                       \
    FORWARD(attention_forward_128_##dtype, T, 128, 2, 4, 32, false, false)                        \
    FORWARD(attention_forward_dropout_32_##dtype, T, 32, 2, 4, 64, true, true)                    \
    FORWARD(attention_forward_dropout_64_##dtype, T, 64, 2, 4, 64, HOLDS_64, true)                \
    FORWARD(attention_forward_dropout_128_##dtype, T, 128, 2, 4, 32, false, true)
FORWARDS(f16, f16)
#if DEVICE_HAS_BF16_MMA
FORWARDS(bf16, bf16)
#endif
