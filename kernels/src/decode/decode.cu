// One token of a sequence whose keys and values are kept (formulas: mod.rs).
// `at` holds the token and its position. linear: each block brings x, normalised if it is to be,
// to shared memory by itself, which costs less than a launch; then a warp takes a row of the
// weights at a time. attention: a block takes a head, LANES threads a key, and each thread a column
// of some of the values. Sums have an order that depends on the shape alone.
// Bound: memory, the weights once; attention the keys and values up to the position.
#include "../gelu/forms.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;
constexpr int LANES = 8;                 // of a key
constexpr int KEYS = THREADS / LANES;    // at a time
constexpr int HEAD_SIZE_MAX = THREADS;
constexpr float LAYERNORM_EPS = 1e-5f;
constexpr float LOG2_E = 1.44269504f;

template <typename T>
__device__ __forceinline__ void decode_embed(T* x, const int* at, const T* wte, const T* wpe,
                                             int c) {
    const size_t token = at[0], position = at[1];
    const int i = blockIdx.x * THREADS + threadIdx.x;
    if (i < c) x[i] = from_float<T>(to_float(wte[token * c + i]) + to_float(wpe[position * c + i]));
}

// A row of the weights times `input`, in lane 0 and all others.
template <typename T>
__device__ __forceinline__ float row_times(const T* weight, const float* input, int k,
                                           bool vectors) {
    constexpr int SIZE = Vec<T>::size;
    const int lane = threadIdx.x % 32;
    float sum = 0.0f;
    if (vectors) {
#pragma unroll 4
        for (int i = lane * SIZE; i < k; i += 32 * SIZE) {
            const Vec<T> w = load_vec_streaming(weight + i);
#pragma unroll
            for (int part = 0; part < SIZE; part += 4) {
                const Vec<float> x = load_vec(input + i + part);
#pragma unroll
                for (int j = 0; j < 4; j++) sum += to_float(w[part + j]) * x[j];
            }
        }
    } else {
        for (int i = lane; i < k; i += 32) sum += to_float(weight[i]) * input[i];
    }
    return warp_sum(sum);
}

// `norm_weight` null: x as it is. `norm_bias`, `bias` and `residual` may be null.
template <typename T, typename Out, bool with_gelu>
__device__ __forceinline__ void decode_linear(Out* out, const T* x, const T* norm_weight,
                                              const T* norm_bias, const T* weight, const T* bias,
                                              const T* residual, int n, int k) {
    DYNAMIC_SHARED(float, input);  // (K)
    float sum = 0.0f;
    for (int i = threadIdx.x; i < k; i += THREADS) {
        input[i] = to_float(x[i]);
        sum += input[i];
    }
    if (norm_weight) {
        const float mean = block_sum(sum) / k;
        float squares = 0.0f;
        for (int i = threadIdx.x; i < k; i += THREADS) {
            const float d = input[i] - mean;
            squares += d * d;
        }
        const float rstd = rsqrtf(block_sum(squares) / k + LAYERNORM_EPS);
        for (int i = threadIdx.x; i < k; i += THREADS) {
            float scaled = (input[i] - mean) * rstd * to_float(norm_weight[i]);
            if (norm_bias) scaled += to_float(norm_bias[i]);
            input[i] = to_float(from_float<T>(scaled));
        }
    }
    __syncthreads();
    const bool vectors = k % Vec<T>::size == 0 && is_vector_aligned(weight);
    for (int row = blockIdx.x * WARPS + threadIdx.x / 32; row < n; row += gridDim.x * WARPS) {
        float v = row_times(weight + size_t(row) * k, input, k, vectors);
        if (threadIdx.x % 32 != 0) continue;
        if (bias) v += to_float(bias[row]);
        if (with_gelu) v = gelu<false>(to_float(from_float<T>(v)));
        if (residual) v += to_float(residual[row]);
        out[row] = from_float<Out>(v);
    }
}

// query · key, the same in the LANES threads of the key.
template <typename T>
__device__ __forceinline__ float score_of(const float* query, const T* key, int head_size,
                                          bool vectors) {
    constexpr int SIZE = Vec<T>::size;
    const int lane = threadIdx.x % LANES;
    float sum = 0.0f;
    if (vectors) {
        for (int i = lane * SIZE; i < head_size; i += LANES * SIZE) {
            const Vec<T> k = load_vec(key + i);
#pragma unroll
            for (int j = 0; j < SIZE; j++) sum += query[i + j] * to_float(k[j]);
        }
    } else {
        for (int i = lane; i < head_size; i += LANES) sum += query[i] * to_float(key[i]);
    }
    return sum;
}

template <typename T>
__device__ __forceinline__ void decode_attention(T* out, T* keys, T* values, const T* qkv,
                                                 const int* at, int heads, int head_size,
                                                 int block_size, float scale) {
    DYNAMIC_SHARED(float, weights);  // (block)
    SHARED(float, query, HEAD_SIZE_MAX);
    SHARED(float, sums, THREADS);
    const int head = blockIdx.x, c = heads * head_size, position = at[1];
    const size_t cache = size_t(head) * block_size * head_size;
    keys += cache;
    values += cache;
    qkv += head * head_size;
    for (int d = threadIdx.x; d < head_size; d += THREADS) {
        query[d] = to_float(qkv[d]) * scale;
        keys[size_t(position) * head_size + d] = qkv[c + d];
        values[size_t(position) * head_size + d] = qkv[2 * c + d];
    }
    __syncthreads();

    const bool vectors = head_size % Vec<T>::size == 0 && is_vector_aligned(keys);
    float largest = -INFINITY;
    for (int first = 0; first <= position; first += KEYS) {
        const int t = first + threadIdx.x / LANES;
        float score = t <= position ? score_of(query, keys + size_t(t) * head_size, head_size,
                                               vectors)
                                    : 0.0f;
#pragma unroll
        for (int lanes = LANES / 2; lanes > 0; lanes /= 2)
            score += __shfl_xor_sync(ALL_LANES, score, lanes, 32);
        if (t > position) continue;
        largest = fmaxf(largest, score);
        if (threadIdx.x % LANES == 0) weights[t] = score;
    }
    largest = block_max(largest);
    float sum = 0.0f;
    for (int t = threadIdx.x; t <= position; t += THREADS) {
        weights[t] = exp2_fast((weights[t] - largest) * LOG2_E);
        sum += weights[t];
    }
    const float total = block_sum(sum);

    const int d = threadIdx.x % head_size, group = threadIdx.x / head_size;
    const int groups = THREADS / head_size;
    sum = 0.0f;
    if (group < groups) {
        for (int t = group; t <= position; t += groups)
            sum += weights[t] * to_float(values[size_t(t) * head_size + d]);
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (group > 0) return;
    for (int other = 1; other < groups; other++) sum += sums[other * head_size + d];
    out[head * head_size + d] = from_float<T>(sum / total);
}

// A block takes a token of the prompt.
template <typename T>
__device__ __forceinline__ void decode_store(T* keys, T* values, const T* qkv, int heads,
                                             int head_size, int block_size) {
    const int t = blockIdx.x, c = heads * head_size;
    qkv += size_t(t) * 3 * c;
    for (int i = threadIdx.x; i < c; i += THREADS) {
        const size_t head = i / head_size, d = i % head_size;
        const size_t to = (head * block_size + t) * head_size + d;
        keys[to] = qkv[c + i];
        values[to] = qkv[2 * c + i];
    }
}

#define LINEAR(name, T, Out, with_gelu)                                                          \
    KERNEL(name, THREADS,                                                                        \
           (Out * out, const T* x, const T* norm_weight, const T* norm_bias, const T* weight,    \
            const T* bias, const T* residual, int n, int k),                                     \
           (out, x, norm_weight, norm_bias, weight, bias, residual, n, k),                       \
           decode_linear<T, Out, with_gelu>)
#define DECODE(T, dtype)                                                                         \
    KERNEL(decode_embed_##dtype, THREADS,                                                        \
           (T * x, const int* at, const T* wte, const T* wpe, int c), (x, at, wte, wpe, c),      \
           decode_embed<T>)                                                                      \
    LINEAR(decode_linear_##dtype, T, T, false)                                                   \
    LINEAR(decode_linear_gelu_##dtype, T, T, true)                                               \
    LINEAR(decode_logits_##dtype, T, float, false)                                               \
    KERNEL(decode_attention_##dtype, THREADS,                                                    \
           (T * out, T* keys, T* values, const T* qkv, const int* at, int heads, int head_size,  \
            int block_size, float scale),                                                        \
           (out, keys, values, qkv, at, heads, head_size, block_size, scale),                    \
           decode_attention<T>)                                                                  \
    KERNEL(decode_store_##dtype, THREADS,                                                        \
           (T * keys, T* values, const T* qkv, int heads, int head_size, int block_size),        \
           (keys, values, qkv, heads, head_size, block_size), decode_store<T>)
DECODE(float, f32)
DECODE(bf16, bf16)
DECODE(f16, f16)
