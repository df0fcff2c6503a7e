// Token and position embeddings (formulas: mod.rs).
// forward: a thread takes a vector of a row. forward with LayerNorm: a warp takes a row and
// normalises it while it holds it (out, mean, rstd as the room layernorm), so that the first
// LayerNorm of the model costs one write instead of a read and a write more.
// backward, += into f32 gradients, without atomics on floats and in an order that depends on the
// tokens alone:
//   1. the rows of the batch are sorted by token, stably, by a radix sort of 8 bits a pass: each
//      block counts and later places a tile of TILE rows, a scan in between finds the places;
//   2. each piece of PIECE sorted rows is summed per run of one token; a run within the piece goes
//      to dwte at once, what a run has in common with a neighbouring piece to scratch;
//   3. runs over several pieces are added up, in the order of the pieces.
// dwpe sums over the batch. Dropout is undone on the fly: `dout` stays as it is.
// Bound: memory; forward 2 MC elements, backward 2 reads of MC, and 4 VC bytes at most.
#include "../layernorm/forward.cuh"

constexpr int THREADS = 256;
constexpr int TILE = 1024;    // rows that a warp sorts
constexpr int DIGITS = 256;   // values of 8 bits
constexpr int PIECE = 64;     // sorted rows that a block sums
constexpr int SCAN_THREADS = 256;

template <typename T>
__device__ __forceinline__ Vec<T> embedded(const T* token, const T* position, size_t first,
                                           const Dropout& dropout) {
    constexpr int SIZE = Vec<T>::size;
    const Vec<T> a = load_vec(token), b = load_vec(position);
    float factors[SIZE];
    if (dropout.drops()) vector_factors<T>(dropout, first, factors);
    Vec<T> sum;
#pragma unroll
    for (int k = 0; k < SIZE; k++) {
        const float x = to_float(a[k]) + to_float(b[k]);
        sum[k] = from_float<T>(dropout.drops() ? x * factors[k] : x);
    }
    return sum;
}

template <typename T>
__device__ __forceinline__ T embedded_element(const T* wte, const T* wpe, size_t token,
                                              size_t position, size_t row, int i, int c,
                                              const Dropout& dropout) {
    const float x = to_float(wte[token * c + i]) + to_float(wpe[position * c + i]);
    return from_float<T>(dropout.drops() ? x * dropout.factor_at(row * c + i) : x);
}

#define DROPOUT_PARAMETERS                                                                       \
    const unsigned *at, unsigned key_0, unsigned key_1, unsigned place, unsigned threshold,      \
        float keep
#define DROPOUT_ARGUMENTS at, key_0, key_1, place, threshold, keep

// A warp takes a row.
template <typename T>
__device__ __forceinline__ void embedding_forward(T* out, const int* tokens, const T* wte,
                                                  const T* wpe, int rows, int t, int c, int start,
                                                  DROPOUT_PARAMETERS) {
    constexpr int SIZE = Vec<T>::size;
    const size_t row = row_of_the_warp();
    if (row >= rows) return;
    const Dropout dropout = Dropout::of(DROPOUT_ARGUMENTS);
    const int lane = threadIdx.x % 32;
    const size_t token = tokens[row], position = start + row % t;
    const bool aligned = c % SIZE == 0 && is_vector_aligned(out) && is_vector_aligned(wte) &&
                         is_vector_aligned(wpe);
    if (aligned) {
        for (int i = lane * SIZE; i < c; i += 32 * SIZE)
            store_vec(out + row * c + i, embedded(wte + token * c + i, wpe + position * c + i,
                                                  row * c + i, dropout));
    } else {
        for (int i = lane; i < c; i += 32)
            out[row * c + i] =
                embedded_element(wte, wpe, token, position, row, i, c, dropout);
    }
}

template <typename T, int N>
__device__ __forceinline__ void embedding_layernorm_forward(
    T* x, T* out, float* mean, float* rstd, const int* tokens, const T* wte, const T* wpe,
    const T* weight, const T* bias, int rows, int t, int c, int start, DROPOUT_PARAMETERS) {
    const size_t row = row_of_the_warp();
    if (row >= rows) return;
    const Dropout dropout = Dropout::of(DROPOUT_ARGUMENTS);
    const T* token = wte + size_t(tokens[row]) * c;
    const T* position = wpe + (start + row % t) * c;
    layernorm_row<T, N>(Normalised<T>{out, mean, rstd, weight, bias}, row, c,
                        [=](size_t row, int i) {
                            const Vec<T> sum =
                                embedded(token + i, position + i, row * c + i, dropout);
                            store_vec(x + row * c + i, sum);
                            return sum;
                        });
}

template <typename T>
__device__ __forceinline__ void embedding_layernorm_forward_any(
    T* x, T* out, float* mean, float* rstd, const int* tokens, const T* wte, const T* wpe,
    const T* weight, const T* bias, int rows, int t, int c, int start, DROPOUT_PARAMETERS) {
    const size_t row = row_of_the_warp();
    if (row >= rows) return;
    const Dropout dropout = Dropout::of(DROPOUT_ARGUMENTS);
    const size_t token = tokens[row], position = start + row % t;
    layernorm_row_any(
        Normalised<T>{out, mean, rstd, weight, bias}, row, c,
        [=](size_t row, int i) {
            const T sum = embedded_element(wte, wpe, token, position, row, i, c, dropout);
            x[row * c + i] = sum;
            return to_float(sum);
        },
        [=](size_t row, int i) { return to_float(x[row * c + i]); });
}

__device__ __forceinline__ int digit_of(int token, int shift) {
    return token >> shift & (DIGITS - 1);
}

// counts[digit][tile] = rows of the tile whose token has the digit. `order` null: rows as they are.
__device__ __forceinline__ void embedding_sort_count(int* counts, const int* order,
                                                     const int* tokens, int rows, int tiles,
                                                     int shift) {
    SHARED(int, count, DIGITS);
    for (int d = threadIdx.x; d < DIGITS; d += THREADS) count[d] = 0;
    __syncthreads();
    const int first = blockIdx.x * TILE, last = min(first + TILE, rows);
    for (int i = first + threadIdx.x; i < last; i += THREADS)
        atomicAdd(&count[digit_of(tokens[order ? order[i] : i], shift)], 1);
    __syncthreads();
    for (int d = threadIdx.x; d < DIGITS; d += THREADS)
        counts[d * tiles + blockIdx.x] = count[d];
}

// Exclusive prefix sums of n counts, in place, by one block.
__device__ __forceinline__ void embedding_sort_scan(int* counts, int n) {
    SHARED(int, sums, SCAN_THREADS);
    const int each = (n + SCAN_THREADS - 1) / SCAN_THREADS;
    const int first = min(int(threadIdx.x) * each, n), last = min(first + each, n);
    int sum = 0;
    for (int i = first; i < last; i++) sum += counts[i];
    sums[threadIdx.x] = sum;
    __syncthreads();
    for (int step = 1; step < SCAN_THREADS; step *= 2) {
        const int before = int(threadIdx.x) >= step ? sums[threadIdx.x - step] : 0;
        __syncthreads();
        sums[threadIdx.x] += before;
        __syncthreads();
    }
    int place = sums[threadIdx.x] - sum;
    for (int i = first; i < last; i++) {
        const int count = counts[i];
        counts[i] = place;
        place += count;
    }
}

// sorted[place of the row] = row, in the order of the rows among equal digits. One warp a tile,
// which it walks in order, 32 rows at a time.
__device__ __forceinline__ void embedding_sort_place(int* sorted, const int* order,
                                                     const int* tokens, const int* places,
                                                     int rows, int tiles, int shift) {
    SHARED(int, next, DIGITS);
    const int lane = threadIdx.x;
    for (int d = lane; d < DIGITS; d += 32) next[d] = places[d * tiles + blockIdx.x];
    __syncwarp();
    const int first = blockIdx.x * TILE, last = min(first + TILE, rows);
    for (int i = first + lane; i - lane < last; i += 32) {
        const bool valid = i < last;
        const int row = valid ? (order ? order[i] : i) : 0;
        const int digit = valid ? digit_of(tokens[row], shift) : 0;
        unsigned same = __ballot_sync(ALL_LANES, valid);
#pragma unroll
        for (int bit = 0; bit < 8; bit++) {
            const unsigned set = __ballot_sync(ALL_LANES, digit >> bit & 1);
            same &= digit >> bit & 1 ? set : ~set;
        }
        const int rank = __popc(same & ((1u << lane) - 1));
        if (valid) sorted[next[digit] + rank] = row;
        __syncwarp();
        // The last of its equals moves the place on.
        if (valid && rank == __popc(same) - 1) next[digit] += rank + 1;
        __syncwarp();
    }
}

// SIZE columns of a row, dropped out: one vector, or one element.
template <typename T, int SIZE>
__device__ __forceinline__ void add_dropped(float (&sum)[SIZE], const T* dout, size_t first,
                                            const Dropout& dropout) {
    if constexpr (SIZE == 1) {
        const float factor = dropout.drops() ? dropout.factor_at(first) : 1.0f;
        sum[0] += to_float(dout[first]) * factor;
    } else {
        const Vec<T> x = load_vec(dout + first);
        float factors[SIZE];
        if (dropout.drops()) vector_factors<T>(dropout, first, factors);
#pragma unroll
        for (int k = 0; k < SIZE; k++)
            sum[k] += dropout.drops() ? to_float(x[k]) * factors[k] : to_float(x[k]);
    }
}

// to += or = sum.
template <int SIZE, bool ADD>
__device__ __forceinline__ void put(float* to, const float (&sum)[SIZE]) {
    if constexpr (SIZE == 1) {
        to[0] = ADD ? to[0] + sum[0] : sum[0];
    } else {
#pragma unroll
        for (int part = 0; part < SIZE; part += 4) {
            Vec<float> v;
            if (ADD) v = load_vec(to + part);
#pragma unroll
            for (int k = 0; k < 4; k++) v[k] = ADD ? v[k] + sum[part + k] : sum[part + k];
            store_vec(to + part, v);
        }
    }
}

template <int SIZE> __device__ __forceinline__ void clear(float (&sum)[SIZE]) {
#pragma unroll
    for (int k = 0; k < SIZE; k++) sum[k] = 0.0f;
}

// partials: (pieces, 2, C): what the piece's first run and its last run have in it, where that run
// reaches beyond the piece. A thread sums SIZE columns.
template <typename T, int SIZE>
__device__ __forceinline__ void sum_piece(float* dwte, float* partials, const T* dout,
                                          const int* sorted, const int* tokens, int rows, int c,
                                          int column, const Dropout& dropout) {
    const int first = blockIdx.x * PIECE, last = min(first + PIECE, rows);
    float* partial = partials + size_t(blockIdx.x) * 2 * c + column;
    float sum[SIZE];
    clear(sum);
    bool whole = first == 0 || tokens[sorted[first - 1]] != tokens[sorted[first]];
    for (int i = first; i < last; i++) {
        const size_t row = sorted[i];
        const int token = tokens[row];
        add_dropped<T, SIZE>(sum, dout, row * c + column, dropout);
        const bool ends = i + 1 == rows || tokens[sorted[i + 1]] != token;
        if (!ends && i + 1 < last) continue;
        if (whole && ends)
            put<SIZE, true>(dwte + size_t(token) * c + column, sum);
        else
            put<SIZE, false>(whole ? partial + c : partial, sum);
        clear(sum);
        whole = true;
    }
}

template <typename T>
__device__ __forceinline__ void embedding_backward_pieces(float* dwte, float* partials,
                                                          const T* dout, const int* sorted,
                                                          const int* tokens, int rows, int c,
                                                          bool vectors, DROPOUT_PARAMETERS) {
    constexpr int SIZE = Vec<T>::size;
    const Dropout dropout = Dropout::of(DROPOUT_ARGUMENTS);
    const int thread = blockIdx.y * THREADS + threadIdx.x;
    if (vectors) {
        if (thread < c / SIZE)
            sum_piece<T, SIZE>(dwte, partials, dout, sorted, tokens, rows, c, thread * SIZE,
                               dropout);
    } else if (thread < c) {
        sum_piece<T, 1>(dwte, partials, dout, sorted, tokens, rows, c, thread, dropout);
    }
}

// A run that begins in this piece and reaches beyond it.
__device__ __forceinline__ void embedding_backward_runs(float* dwte, const float* partials,
                                                        const int* sorted, const int* tokens,
                                                        int rows, int c) {
    const int column = blockIdx.y * THREADS + threadIdx.x;
    const int first = blockIdx.x * PIECE, end = first + PIECE;
    if (column >= c || end >= rows) return;
    const int token = tokens[sorted[end - 1]];
    if (tokens[sorted[end]] != token) return;
    // Where the whole piece is of this token, the run may have begun before it.
    if (first > 0 && tokens[sorted[first - 1]] == token) return;
    float sum = partials[(size_t(blockIdx.x) * 2 + 1) * c + column];
    for (int piece = blockIdx.x + 1; piece * PIECE < rows; piece++) {
        if (tokens[sorted[piece * PIECE]] != token) break;
        sum += partials[size_t(piece) * 2 * c + column];
    }
    dwte[size_t(token) * c + column] += sum;
}

// dwpe += the sum over the batch; a thread takes SIZE elements of (T, C).
template <typename T, int SIZE>
__device__ __forceinline__ void sum_batch(float* dwpe, const T* dout, int batch, size_t n,
                                          size_t i, const Dropout& dropout) {
    if (i >= n) return;
    float sum[SIZE];
    clear(sum);
    for (int b = 0; b < batch; b++) add_dropped<T, SIZE>(sum, dout, b * n + i, dropout);
    put<SIZE, true>(dwpe + i, sum);
}

template <typename T>
__device__ __forceinline__ void embedding_backward_positions(float* dwpe, const T* dout, int batch,
                                                             int t, int c, bool vectors,
                                                             DROPOUT_PARAMETERS) {
    const Dropout dropout = Dropout::of(DROPOUT_ARGUMENTS);
    const size_t thread = blockIdx.x * size_t(THREADS) + threadIdx.x, n = size_t(t) * c;
    if (vectors)
        sum_batch<T, Vec<T>::size>(dwpe, dout, batch, n, thread * Vec<T>::size, dropout);
    else
        sum_batch<T, 1>(dwpe, dout, batch, n, thread, dropout);
}

#define LAYERNORM_PARAMETERS(T)                                                                  \
    (T * x, T * out, float* mean, float* rstd, const int* tokens, const T* wte, const T* wpe,    \
     const T* weight, const T* bias, int rows, int t, int c, int start, DROPOUT_PARAMETERS)
#define LAYERNORM_ARGUMENTS                                                                      \
    (x, out, mean, rstd, tokens, wte, wpe, weight, bias, rows, t, c, start, DROPOUT_ARGUMENTS)
#define WITH_LAYERNORM(T, dtype, N)                                                              \
    KERNEL(embedding_layernorm_forward_##N##_##dtype, ROW_THREADS, LAYERNORM_PARAMETERS(T),      \
           LAYERNORM_ARGUMENTS, embedding_layernorm_forward<T, N>)
#define EMBEDDING(T, dtype)                                                                      \
    KERNEL(embedding_forward_##dtype, ROW_THREADS,                                               \
           (T * out, const int* tokens, const T* wte, const T* wpe, int rows, int t, int c,      \
            int start, DROPOUT_PARAMETERS),                                                      \
           (out, tokens, wte, wpe, rows, t, c, start, DROPOUT_ARGUMENTS), embedding_forward<T>)  \
    WITH_LAYERNORM(T, dtype, 1)                                                                  \
    WITH_LAYERNORM(T, dtype, 2)                                                                  \
    WITH_LAYERNORM(T, dtype, 4)                                                                  \
    WITH_LAYERNORM(T, dtype, 8)                                                                  \
    KERNEL(embedding_layernorm_forward_any_##dtype, ROW_THREADS, LAYERNORM_PARAMETERS(T),        \
           LAYERNORM_ARGUMENTS, embedding_layernorm_forward_any<T>)                              \
    KERNEL(embedding_backward_pieces_##dtype, THREADS,                                           \
           (float* dwte, float* partials, const T* dout, const int* sorted, const int* tokens,   \
            int rows, int c, int vectors, DROPOUT_PARAMETERS),                                   \
           (dwte, partials, dout, sorted, tokens, rows, c, vectors != 0, DROPOUT_ARGUMENTS),     \
           embedding_backward_pieces<T>)                                                         \
    KERNEL(embedding_backward_positions_##dtype, THREADS,                                        \
           (float* dwpe, const T* dout, int batch, int t, int c, int vectors,                    \
            DROPOUT_PARAMETERS),                                                                 \
           (dwpe, dout, batch, t, c, vectors != 0, DROPOUT_ARGUMENTS),                           \
           embedding_backward_positions<T>)
EMBEDDING(float, f32)
EMBEDDING(bf16, bf16)
EMBEDDING(f16, f16)
KERNEL(embedding_backward_runs_f32, THREADS,
       (float* dwte, const float* partials, const int* sorted, const int* tokens, int rows, int c),
       (dwte, partials, sorted, tokens, rows, c), embedding_backward_runs)
KERNEL(embedding_sort_count_i32, THREADS,
       (int* counts, const int* order, const int* tokens, int rows, int tiles, int shift),
       (counts, order, tokens, rows, tiles, shift), embedding_sort_count)
KERNEL(embedding_sort_scan_i32, SCAN_THREADS, (int* counts, int n), (counts, n),
       embedding_sort_scan)
KERNEL(embedding_sort_place_i32, 32,
       (int* sorted, const int* order, const int* tokens, const int* places, int rows, int tiles,
        int shift),
       (sorted, order, tokens, places, rows, tiles, shift), embedding_sort_place)
