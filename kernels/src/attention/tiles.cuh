// What the attention kernels on tensor cores share: tiles of 16-bit rows in shared memory, their
// fragments for mma.sync, and the dropout mask of a fragment. attention.cu, backward.cu include it.
#pragma once

#include "../common/device.cuh"

constexpr float LOG2_E = 1.44269504f, LN_2 = 0.69314718f;

// The head of a block: its part of packed tensors, and the tile of rows that the block computes.
// Blocks of one head are neighbours, so that they find each other's rows in the L2 cache.
struct Place {
    int head, tile;
    unsigned first_token;  // of the sequence, among all tokens
    unsigned row;          // of (B, H, T): that of token 0

    __device__ __forceinline__ Place(int time, int heads, int tiles) {
        const int both = blockIdx.x / tiles;
        tile = blockIdx.x % tiles;
        head = both % heads;
        first_token = unsigned(both / heads) * time;
        row = unsigned(both) * time;
    }
};

// Rows of one head in a packed tensor: row i begins at first + i stride.
template <typename T> struct Rows {
    T* first;
    int stride;
    int columns;   // hs
    bool aligned;  // rows are whole vectors at aligned addresses

    // Of a tensor whose tokens have `stride` elements, the head's at `column`.
    static __device__ __forceinline__ Rows of(T* tensor, const Place& place, int stride, int column,
                                              int head_size) {
        const bool aligned = is_vector_aligned(tensor) && head_size % 8 == 0;
        T* first = tensor + size_t(place.first_token) * stride + column + place.head * head_size;
        return Rows{first, stride, head_size, aligned};
    }
};

// Byte offset of 16-byte chunk `chunk` of a row in a tile of rows of D elements. Chunks change
// places within a row so that eight rows at one chunk, which ldmatrix reads at a time, lie in all
// 32 banks; of D = 32, two rows fill the banks once.
template <int D> __device__ __forceinline__ unsigned tile_offset(int row, int chunk) {
    const int turn = D == 32 ? row / 2 % 4 : row % 8;
    return row * (2 * D) + (chunk ^ turn) * 16;
}

// Starts to copy rows first to first + ROWS - 1 into a tile; zeros stand for rows from `end` on
// and for columns that the head does not have.
template <int D, int ROWS, int THREADS, typename T>
__device__ __forceinline__ void copy_tile(T* tile, const Rows<const T>& from, int first, int end) {
    constexpr int CHUNKS = D / 8, STEP = THREADS / CHUNKS;
    static_assert(THREADS % CHUNKS == 0 && ROWS % STEP == 0, "each thread copies as many");
    const int chunk = threadIdx.x % CHUNKS, row = threadIdx.x / CHUNKS;
    const T* source = from.first + size_t(first + row) * from.stride + chunk * 8;
    if (from.aligned) {
        const uint32_t to = shared_address(tile);
#pragma unroll
        for (int i = 0; i < ROWS; i += STEP, source += STEP * from.stride) {
            const bool valid = first + row + i < end && chunk * 8 < from.columns;
            copy_async_16(to + tile_offset<D>(row + i, chunk), valid ? source : from.first, valid);
        }
        return;
    }
#pragma unroll 1
    for (int i = 0; i < ROWS; i += STEP) {
        Vec<T> v;
#pragma unroll
        for (int k = 0; k < 8; k++) {
            const bool valid = first + row + i < end && chunk * 8 + k < from.columns;
            v[k] = valid ? source[size_t(i) * from.stride + k] : from_float<T>(0.0f);
        }
        store_vec(tile + tile_offset<D>(row + i, chunk) / sizeof(T), v);
    }
}

// Where a lane points ldmatrix in the 16 x 16 block at rows 0.., columns 0..: the four 8 x 8
// matrices are (upper, left), (lower, left), (upper, right), (lower, right). In register numbers:
//   as A                             0 1 2 3
//   as B, rows being its columns     {0, 2} and {1, 3}
//   transposed, as B, rows its rows  {0, 1} and {2, 3}
template <int D> __device__ __forceinline__ unsigned lane_offset() {
    const int lane = threadIdx.x % 32;
    return tile_offset<D>(lane % 16, lane / 16);
}
// The same of the block at rows row.. (a multiple of 16) and columns 16 k...
template <int D> __device__ __forceinline__ unsigned block_offset(unsigned lane, int row, int k) {
    return row * (2 * D) + (lane ^ k * 32);
}

// acc (16 M x 8 N) += a row fragment of 16 columns times 16 columns of N / 2 blocks of rows.
// sums[m][n] += a[m] b^T, where b is rows 0.. to 8 N of the tile at `tile`, columns 16 k...
template <int D, int M, int N, typename T>
__device__ __forceinline__ void multiply_by_rows(float (&sums)[M][N][4], const uint32_t (&a)[M][4],
                                                 uint32_t tile, unsigned lane, int k) {
#pragma unroll
    for (int n = 0; n < N / 2; n++) {
        uint32_t b[4];
        load_matrix_x4(b, tile + block_offset<D>(lane, 16 * n, k));
#pragma unroll
        for (int m = 0; m < M; m++) {
            mma_m16n8k16(sums[m][2 * n], a[m], {b[0], b[2]}, T());
            mma_m16n8k16(sums[m][2 * n + 1], a[m], {b[1], b[3]}, T());
        }
    }
}

// sums (16 M x D) += x (16 M x 8 N, rounded to T) times the rows 0.. to 8 N of the tile at `tile`.
template <int D, int M, int N, typename T>
__device__ __forceinline__ void add_product(float (&sums)[M][D / 8][4], const float (&x)[M][N][4],
                                            uint32_t tile, unsigned lane) {
#pragma unroll
    for (int k = 0; k < N / 2; k++) {
        uint32_t a[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) {
            a[m][0] = pack2<T>(x[m][2 * k][0], x[m][2 * k][1]);
            a[m][1] = pack2<T>(x[m][2 * k][2], x[m][2 * k][3]);
            a[m][2] = pack2<T>(x[m][2 * k + 1][0], x[m][2 * k + 1][1]);
            a[m][3] = pack2<T>(x[m][2 * k + 1][2], x[m][2 * k + 1][3]);
        }
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            uint32_t b[4];
            load_matrix_x4_transposed(b, tile + block_offset<D>(lane, 16 * k, n));
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_m16n8k16(sums[m][2 * n], a[m], {b[0], b[1]}, T());
                mma_m16n8k16(sums[m][2 * n + 1], a[m], {b[2], b[3]}, T());
            }
        }
    }
}

template <int M, int N> __device__ __forceinline__ void clear(float (&x)[M][N][4]) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) x[m][n][e] = 0.0f;
}

// Writes a warp's sums (16 M x D), rounded, to rows first.. of `to` below `end`. They pass through
// `tile`, 16 M rows of shared memory that no other warp uses, to be written in vectors.
template <int D, int M, typename T>
__device__ __forceinline__ void store_sums(const Rows<T>& to, int first, int end, T* tile,
                                           const float (&sums)[M][D / 8][4]) {
    const int lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const int row = 16 * m + 8 * r + group;
                const uint32_t two = pack2<T>(sums[m][n][2 * r], sums[m][n][2 * r + 1]);
                const unsigned at = tile_offset<D>(row, n) / sizeof(T) + 2 * quad;
                *reinterpret_cast<uint32_t*>(tile + at) = two;
            }
    __syncwarp();
    constexpr int CHUNKS = D / 8, STEP = 32 / CHUNKS;
    const int chunk = lane % CHUNKS;
    T* at = to.first + size_t(first + lane / CHUNKS) * to.stride + chunk * 8;
    if (to.aligned) {
#pragma unroll
        for (int i = 0; i < 16 * M; i += STEP, at += STEP * to.stride) {
            const int row = i + lane / CHUNKS;
            if (first + row < end && chunk * 8 < to.columns)
                // Through Vec<T>, the compiler makes four stores of it before sm_100.
                *reinterpret_cast<uint4*>(at) = *reinterpret_cast<const uint4*>(
                    tile + tile_offset<D>(row, chunk) / sizeof(T));
        }
    } else {
#pragma unroll 1
        for (int i = 0; i < 16 * M; i += STEP, at += STEP * to.stride) {
            const int row = i + lane / CHUNKS;
            const Vec<T> v = load_vec(tile + tile_offset<D>(row, chunk) / sizeof(T));
#pragma unroll
            for (int k = 0; k < 8; k++)
                if (first + row < end && chunk * 8 + k < to.columns) at[k] = v[k];
        }
    }
    __syncwarp();
}

// The mask of the attention weights of a fragment of 16 rows by 8 N columns (N <= 8), an element
// a bit: bit 4 n + e is element e of d[n], 1 where it is kept. Weight (b, h, q, k) is element
// ((b H + h) T + q) T + k of the dropout; `weights` is that of (b, h, 0, 0). Rows are queries and
// columns keys, or the other way round if KEYS.
//
// A Philox block decides on four neighbouring keys. Where they begin at a multiple of 4 (T % 4 is
// 0), the lanes that hold them share the work: each makes one block for each n.
template <bool KEYS, int N>
__device__ __forceinline__ unsigned kept(const Dropout& dropout, size_t weights, int time, int row,
                                         int column) {
    static_assert(N <= 8, "a mask has 32 bits");
    const int lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
    unsigned mask = 0;
    if (time % 4 == 0) {
        // Of queries by keys, lanes 2 i and 2 i + 1 share the blocks of two queries; of keys by
        // queries, four lanes share those of two queries in two groups of keys.
        const int part = KEYS ? group % 4 : quad % 2;
        const int query = KEYS ? column + 2 * quad + part % 2 : row + group + 8 * part;
        const int key = KEYS ? row + group / 4 * 4 + part / 2 * 8 : column + quad / 2 * 4;
        const int step = KEYS ? 8 * (time / 4) : 2;
        unsigned block =
            unsigned(weights / 4) + unsigned(query) * unsigned(time / 4) + unsigned(key / 4);
#pragma unroll 1
        for (int n = 0; n < N; n++, block += step) {
            const uint4 words = dropout.words(block);
            const unsigned four = unsigned(words.x >= dropout.threshold) |
                                  unsigned(words.y >= dropout.threshold) << 1 |
                                  unsigned(words.z >= dropout.threshold) << 2 |
                                  unsigned(words.w >= dropout.threshold) << 3;
            mask |= four << (4 * n);
        }
        if (!KEYS) {
            const unsigned other = __shfl_xor_sync(ALL_LANES, mask, 1);
            const unsigned upper = part ? other : mask, lower = part ? mask : other;
            return (upper >> (2 * part) & 0x33333333u) | (lower >> (2 * part) & 0x33333333u) << 2;
        }
        unsigned all = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const unsigned other = i == 0 ? mask : __shfl_xor_sync(ALL_LANES, mask, 4 * i);
            all |= (other >> part & 0x11111111u) << (part ^ i);
        }
        return all;
    }
#pragma unroll 1
    for (int bit = 0; bit < 4 * N; bit++) {
        const int i = row + group + bit / 2 % 2 * 8, j = column + bit / 4 * 8 + 2 * quad + bit % 2;
        const size_t weight = weights + size_t(KEYS ? j : i) * time + (KEYS ? i : j);
        mask |= unsigned(dropout.factor_at(weight) != 0.0f) << bit;
    }
    return mask;
}
