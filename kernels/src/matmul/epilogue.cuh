// What follows a product on its way to memory, for the kernels of this room: scale, bias, addend,
// GELU or its derivative, and the store in vectors of 16 bytes.
#pragma once
#include "../gelu/forms.cuh"

// What happens to v = scale * product + bias (as the constants in cuda.rs).
enum Kind {
    ADD = 0,                  // out = v + other, where there is one
    GELU_ERF = 1,             // pre = v, out = gelu(pre)
    GELU_TANH = 2,
    GELU_BACKWARD_ERF = 3,    // out = v * gelu'(other)
    GELU_BACKWARD_TANH = 4,
};

// out (rows, cols) from sums in f32. `other` may be `out`: each element is read before it is
// written, by the thread that writes it.
template <typename T, typename Out> struct Epilogue {
    static constexpr int WIDTH = Vec<Out>::size;  // columns that a thread takes at a time
    Out* out;
    Out* pre;          // where GELU's argument goes, or null
    const T* bias;     // (cols) or null
    const Out* other;  // (rows, cols) or null
    int rows, cols, kind;
    float scale;
    bool vectors;  // every row of out, pre and other starts at a multiple of 16 bytes

    static __device__ __forceinline__ Epilogue of(Out* out, Out* pre, const T* bias,
                                                  const Out* other, int rows, int cols, int kind,
                                                  float scale) {
        const bool vectors = cols % WIDTH == 0 && is_vector_aligned(out) &&
                             is_vector_aligned(pre) && is_vector_aligned(other);
        return Epilogue{out, pre, bias, other, rows, cols, kind, scale, vectors};
    }

    __device__ __forceinline__ void load_bias(float (&b)[WIDTH], int col) const {
#pragma unroll
        for (int i = 0; i < WIDTH; i++) b[i] = bias && col + i < cols ? to_float(bias[col + i]) : 0;
    }
    // Zeros where there is none.
    __device__ __forceinline__ Vec<Out> load_other(int row, int col) const {
        Vec<Out> v;
#pragma unroll
        for (int i = 0; i < WIDTH; i++) v[i] = from_float<Out>(0.0f);
        if (!other || row >= rows) return v;
        const Out* from = other + size_t(row) * cols + col;
        if (vectors) {
            if (col < cols) v = load_vec(from);
        } else {
#pragma unroll
            for (int i = 0; i < WIDTH; i++)
                if (col + i < cols) v[i] = from[i];
        }
        return v;
    }
    __device__ __forceinline__ void store(Out* matrix, int row, int col, const Vec<Out>& v) const {
        if (row >= rows) return;
        Out* to = matrix + size_t(row) * cols + col;
        if (vectors) {
            if (col < cols) store_vec(to, v);
        } else {
#pragma unroll
            for (int i = 0; i < WIDTH; i++)
                if (col + i < cols) to[i] = v[i];
        }
    }
    // pre is rounded before GELU: the same bits as a GELU kernel of its own after this product.
    template <bool tanh_form>
    __device__ __forceinline__ void gelu_forward(int row, int col, float (&v)[WIDTH]) const {
        Vec<Out> argument, result;
#pragma unroll
        for (int i = 0; i < WIDTH; i++) {
            argument[i] = from_float<Out>(v[i]);
            result[i] = from_float<Out>(gelu<tanh_form>(to_float(argument[i])));
        }
        if (pre) store(pre, row, col, argument);
        store(out, row, col, result);
    }
    template <bool tanh_form>
    __device__ __forceinline__ void gelu_backward(int row, int col, float (&v)[WIDTH],
                                                  const Vec<Out>& argument) const {
        Vec<Out> result;
#pragma unroll
        for (int i = 0; i < WIDTH; i++)
            result[i] = from_float<Out>(v[i] * gelu_slope<tanh_form>(to_float(argument[i])));
        store(out, row, col, result);
    }
};

// The sums of a warp lie in shared memory as floats in rows of this stride. With stride % 32 = 8
// the fragments of mma, written as pairs of columns (4 rows of 8 floats for half a warp), and the
// rows read back (see load_sums) meet no bank twice.
template <int COLS> constexpr int STAGED_STRIDE = COLS + 8;

// WIDTH sums of a row. A quarter of a warp reads 16 bytes a lane; lanes that take 32 bytes would
// meet in their banks two by two, so every second group of four lanes reads its halves in turn.
template <int WIDTH>
__device__ __forceinline__ void load_sums(float (&v)[WIDTH], const float* staged, int lane) {
    static_assert(WIDTH == 4 || WIDTH == 8, "16 bytes of a type");
    if (WIDTH == 4) {
        const Vec<float> four = load_vec(staged);
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] = four[i];
    } else {
        const bool turned = lane / 4 % 2 == 1;
        const Vec<float> first = load_vec(staged + (turned ? 4 : 0));
        const Vec<float> second = load_vec(staged + (turned ? 0 : 4));
#pragma unroll
        for (int i = 0; i < 4; i++) {
            v[i] = turned ? second[i] : first[i];
            v[WIDTH - 4 + i] = turned ? first[i] : second[i];
        }
    }
}

// Takes ROWS x COLS sums of a warp from shared memory through the epilogue to memory, where they
// start at (row, col). Each pass of the warp is of whole rows, so that stores are coalesced.
template <int ROWS, int COLS, bool GELUS, typename T, typename Out>
__device__ __forceinline__ void drain(const Epilogue<T, Out>& epilogue, const float* staged,
                                      int row, int col, int lane) {
    constexpr int WIDTH = Epilogue<T, Out>::WIDTH, LANES = COLS / WIDTH, STEP = 32 / LANES;
    constexpr int PASSES = ROWS / STEP;
    const int lane_col = lane % LANES * WIDTH;
    row += lane / LANES;
    col += lane_col;
    staged += lane / LANES * STAGED_STRIDE<COLS> + lane_col;
    float bias[WIDTH], v[WIDTH];
    epilogue.load_bias(bias, col);
    if (!GELUS || epilogue.kind == ADD) {
        Vec<Out> others[PASSES];  // all loads are under way before the first is needed
#pragma unroll
        for (int p = 0; p < PASSES; p++) others[p] = epilogue.load_other(row + p * STEP, col);
#pragma unroll
        for (int p = 0; p < PASSES; p++) {
            load_sums(v, staged + p * STEP * STAGED_STRIDE<COLS>, lane);
            Vec<Out> result;
#pragma unroll
            for (int i = 0; i < WIDTH; i++)
                result[i] = from_float<Out>(fmaf(v[i], epilogue.scale, bias[i]) +
                                            to_float(others[p][i]));
            epilogue.store(epilogue.out, row + p * STEP, col, result);
        }
        return;
    }
    Vec<Out> argument = epilogue.load_other(row, col);
#pragma unroll 1
    for (int p = 0; p < PASSES; p++) {
        const Vec<Out> next = epilogue.load_other(row + STEP, col);
        load_sums(v, staged, lane);
#pragma unroll
        for (int i = 0; i < WIDTH; i++) v[i] = fmaf(v[i], epilogue.scale, bias[i]);
        if (epilogue.kind == GELU_ERF) epilogue.template gelu_forward<false>(row, col, v);
        if (epilogue.kind == GELU_TANH) epilogue.template gelu_forward<true>(row, col, v);
        if (epilogue.kind == GELU_BACKWARD_ERF)
            epilogue.template gelu_backward<false>(row, col, v, argument);
        if (epilogue.kind == GELU_BACKWARD_TANH)
            epilogue.template gelu_backward<true>(row, col, v, argument);
        argument = next;
        row += STEP;
        staged += STEP * STAGED_STRIDE<COLS>;
    }
}

// The tile of a block, with 8 rows of tiles walked column by column, so that the blocks that run
// at a time share operands in L2.
__device__ __forceinline__ uint2 tile_of_block(int rows, int cols, int tile_rows, int tile_cols) {
    constexpr unsigned GROUP = 8;
    const unsigned tiles_down = (rows + tile_rows - 1) / tile_rows;
    const unsigned tiles_across = (cols + tile_cols - 1) / tile_cols;
    const unsigned group = blockIdx.x / (GROUP * tiles_across);
    const unsigned within = blockIdx.x % (GROUP * tiles_across);
    const unsigned height = min(tiles_down - group * GROUP, GROUP);
    return make_uint2(group * GROUP + within % height, within / height);
}
