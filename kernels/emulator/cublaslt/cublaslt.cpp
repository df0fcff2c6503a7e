// Stands for cuBLASLt in the emulator: the entry points that kernels::cuda::cublaslt calls, with
// the numbers and the rules of NVIDIA's header and documentation (12.x), on memory of the host.
// It computes at once and refuses what is documented to be refused: misaligned or overlapping
// operands, leading dimensions that are too small, a workspace that is too small, attributes of
// the wrong size, algorithms of another operation. It does not know what a GPU's library finds
// unsupported beyond that. Made a shared library by build.rs.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include "numbers.h"

namespace {

enum Status { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum Type { F32 = 0, F16 = 2, BF16 = 14 };
enum Compute { COMPUTE_32F = 68, COMPUTE_32F_FAST_TF32 = 77 };
// Bits of an epilogue.
enum Epilogue : uint32_t {
    DEFAULT = 1, BIAS = 4, GELU = 32, DGELU = 64, AUX = 128, BGRADB = 512,
};
enum ReductionScheme : uint32_t { IN_COMPUTE_TYPE = 2 };

// cuBLASLt's descriptors begin with what tells them apart here.
enum Kind : uint32_t { HANDLE = 0x4C540001, MATMUL, LAYOUT, PREFERENCE };
constexpr uint64_t ALGORITHM = 0x4C54000000000005;
constexpr size_t WORKSPACE_ALIGNMENT = 256;
constexpr int64_t AUX_LD_MULTIPLE = 8;

struct Handle {
    Kind kind = HANDLE;
};
struct Matmul {
    Kind kind = MATMUL;
    int32_t compute, scale, transposed[2] = {0, 0};
    uint32_t epilogue = DEFAULT;
    void *bias = nullptr, *aux = nullptr;
    int64_t aux_ld = 0;
};
struct Layout {
    Kind kind = LAYOUT;
    int32_t type;
    uint64_t rows, cols;
    int64_t ld;
};
struct Preference {
    Kind kind = PREFERENCE;
    uint64_t workspace = 0;
    uint32_t reductions = 7, alignment[4] = {256, 256, 256, 256};
};
struct Algorithm {
    uint64_t magic;
    // Of the operation that it was found for.
    uint64_t signature;
    // 0 takes everything, 1 wants operands at multiples of 16 bytes, 2 adds in two halves.
    int32_t id, halves;
    uint64_t alignment, workspace;
    uint64_t unused[3];
};
static_assert(sizeof(Algorithm) == 64, "cublasLtMatmulAlgo_t");
struct Result {
    Algorithm algorithm;
    size_t workspace;
    int32_t state;
    float waves;
    int32_t reserved[4];
};
static_assert(sizeof(Result) == 96, "cublasLtMatmulHeuristicResult_t");

template <typename T> const T* known(const void* it, Kind kind) {
    const T* typed = static_cast<const T*>(it);
    return typed && typed->kind == kind ? typed : nullptr;
}

size_t size_of(int32_t type) { return type == F32 ? 4 : type == F16 || type == BF16 ? 2 : 0; }

float load(const void* data, int32_t type, size_t i) {
    switch (type) {
        case F32: return static_cast<const float*>(data)[i];
        case F16: return to_float(static_cast<const f16*>(data)[i]);
        default: return to_float(static_cast<const bf16*>(data)[i]);
    }
}

void store(void* data, int32_t type, size_t i, float x) {
    switch (type) {
        case F32: static_cast<float*>(data)[i] = x; break;
        case F16: static_cast<f16*>(data)[i] = from_float<f16>(x); break;
        default: static_cast<bf16*>(data)[i] = from_float<bf16>(x);
    }
}

// The 10 bits of TF32's mantissa, ties away from zero as `cvt.rna.tf32`.
float to_tf32(float x) {
    if (!std::isfinite(x)) return x;
    return emulator::bit_cast<float>((emulator::bit_cast<uint32_t>(x) + 0x1000u) & ~0x1FFFu);
}

constexpr float GELU_SCALE = 0.79788456f, GELU_CUBIC = 0.044715f;
float gelu(float x) {
    return 0.5f * x * (1.0f + std::tanh(GELU_SCALE * (x + GELU_CUBIC * x * x * x)));
}
float gelu_slope(float x) {
    const float t = std::tanh(GELU_SCALE * (x + GELU_CUBIC * x * x * x));
    const float inner = GELU_SCALE * (1.0f + 3.0f * GELU_CUBIC * x * x);
    return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * inner;
}

bool is_epilogue(uint32_t it) {
    return it == DEFAULT || it == BIAS || it == GELU || it == (GELU | BIAS) || it == (GELU | AUX) ||
           it == (GELU | AUX | BIAS) || it == (DGELU | AUX) || it == BGRADB;
}

// D (m, n) = op(A) (m, k) op(B) (k, n) + C (m, n).
struct Problem {
    const Matmul* matmul;
    const Layout *a, *b, *c, *d;
    uint64_t m, n, k;

    // Why there is none, or SUCCESS.
    Status open(const void* matmul_, const void* a_, const void* b_, const void* c_,
                const void* d_) {
        matmul = known<Matmul>(matmul_, MATMUL);
        a = known<Layout>(a_, LAYOUT), b = known<Layout>(b_, LAYOUT);
        c = known<Layout>(c_, LAYOUT), d = known<Layout>(d_, LAYOUT);
        if (!matmul || !a || !b || !c || !d) return INVALID_VALUE;
        for (const Layout* layout : {a, b, c, d})
            if (layout->rows == 0 || layout->cols == 0 || layout->ld < int64_t(layout->rows))
                return INVALID_VALUE;
        m = d->rows, n = d->cols;
        k = matmul->transposed[0] ? a->rows : a->cols;
        const bool fits = (matmul->transposed[0] ? a->cols : a->rows) == m &&
                          (matmul->transposed[1] ? b->cols : b->rows) == k &&
                          (matmul->transposed[1] ? b->rows : b->cols) == n && c->rows == m &&
                          c->cols == n;
        if (!fits) return INVALID_VALUE;
        const bool types = a->type == b->type && c->type == d->type && size_of(a->type) &&
                           (d->type == a->type || d->type == F32) && matmul->scale == F32;
        const bool compute = matmul->compute == COMPUTE_32F ||
                             (matmul->compute == COMPUTE_32F_FAST_TF32 && a->type == F32);
        if (!types || !compute || !is_epilogue(matmul->epilogue)) return NOT_SUPPORTED;
        if (matmul->epilogue & AUX) {
            if (!matmul->aux || matmul->aux_ld < int64_t(m) || matmul->aux_ld % AUX_LD_MULTIPLE)
                return INVALID_VALUE;
        }
        if (matmul->epilogue & (BIAS | BGRADB) && !matmul->bias) return INVALID_VALUE;
        return SUCCESS;
    }

    uint64_t signature() const {
        return uint64_t(matmul->compute) | uint64_t(a->type) << 8 | uint64_t(d->type) << 16 |
               uint64_t(matmul->transposed[0]) << 24 | uint64_t(matmul->transposed[1]) << 25 |
               uint64_t(matmul->epilogue) << 32;
    }
    // What an algorithm that wants `alignment` demands of leading dimensions and of the vectors,
    // whose addresses are set before an algorithm is looked for.
    bool allows(uint64_t alignment) const {
        for (const Layout* layout : {a, b, c, d})
            if (layout->ld * size_of(layout->type) % alignment) return false;
        const bool aux = !(matmul->epilogue & AUX) || uintptr_t(matmul->aux) % alignment == 0;
        const bool bias = !(matmul->epilogue & (BIAS | BGRADB)) ||
                          uintptr_t(matmul->bias) % size_of(d->type) == 0;
        return aux && bias;
    }
    uint64_t workspace(const Algorithm& it) const { return it.halves > 1 ? 8 * m * n : 0; }
};

// Bytes from a pointer on that an operand takes.
struct Span {
    uintptr_t begin, end;
    Span(const void* data, const Layout& of)
        : begin(uintptr_t(data)),
          end(begin + ((of.cols - 1) * of.ld + of.rows) * size_of(of.type)) {}
    bool meets(const Span& other) const { return begin < other.end && other.begin < end; }
};

// op(X) with `rows` rows, column by column.
std::vector<float> opened(const void* data, const Layout& of, bool transposed, bool tf32) {
    const uint64_t rows = transposed ? of.cols : of.rows, cols = transposed ? of.rows : of.cols;
    std::vector<float> out(rows * cols);
    for (uint64_t j = 0; j < cols; j++)
        for (uint64_t i = 0; i < rows; i++) {
            const float x = load(data, of.type, transposed ? i * of.ld + j : j * of.ld + i);
            out[j * rows + i] = tf32 ? to_tf32(x) : x;
        }
    return out;
}

// sums (m, n) = terms begin to end of a (m, k) times b (k, n).
void add_up(float* sums, const std::vector<float>& a, const std::vector<float>& b,
            const Problem& of, uint64_t begin, uint64_t end) {
    std::memset(sums, 0, of.m * of.n * sizeof(float));
    for (uint64_t j = 0; j < of.n; j++)
        for (uint64_t l = begin; l < end; l++) {
            const float factor = b[j * of.k + l];
            for (uint64_t i = 0; i < of.m; i++) sums[j * of.m + i] += a[l * of.m + i] * factor;
        }
}

void finish(const Problem& of, const std::vector<float>& sums, float alpha, float beta,
            const void* c, void* d) {
    const Matmul& matmul = *of.matmul;
    for (uint64_t j = 0; j < of.n; j++)
        for (uint64_t i = 0; i < of.m; i++) {
            float x = alpha * sums[j * of.m + i];
            if (beta != 0) x += beta * load(c, of.c->type, j * of.c->ld + i);
            if (matmul.epilogue & BIAS) x += load(matmul.bias, of.d->type, i);
            if (matmul.epilogue & DGELU)
                x *= gelu_slope(load(matmul.aux, of.d->type, j * matmul.aux_ld + i));
            if (matmul.epilogue & GELU) {
                if (matmul.epilogue & AUX)
                    store(matmul.aux, of.d->type, j * matmul.aux_ld + i, x);
                x = gelu(x);
            }
            store(d, of.d->type, j * of.d->ld + i, x);
        }
}

// Where an attribute lies and its size, or null for what is not an attribute here.
struct Attribute {
    void* at;
    size_t bytes;
};
Attribute attribute_of(Matmul& it, int32_t attribute) {
    switch (attribute) {
        case 0: return {&it.compute, 4};
        case 1: return {&it.scale, 4};
        case 3: return {&it.transposed[0], 4};
        case 4: return {&it.transposed[1], 4};
        case 7: return {&it.epilogue, 4};
        case 8: return {&it.bias, 8};
        case 11: return {&it.aux, 8};
        case 12: return {&it.aux_ld, 8};
        default: return {nullptr, 0};
    }
}
Attribute attribute_of(Preference& it, int32_t attribute) {
    switch (attribute) {
        case 1: return {&it.workspace, 8};
        case 3: return {&it.reductions, 4};
        case 5: case 6: case 7: case 8: return {&it.alignment[attribute - 5], 4};
        default: return {nullptr, 0};
    }
}

template <typename T>
int set(void* it, Kind kind, int32_t attribute, const void* from, size_t bytes) {
    if (!known<T>(it, kind) || !from) return INVALID_VALUE;
    const Attribute found = attribute_of(*static_cast<T*>(it), attribute);
    if (!found.at || found.bytes != bytes) return INVALID_VALUE;
    std::memcpy(found.at, from, bytes);
    return SUCCESS;
}

template <typename T> int destroy(void* it, Kind kind) {
    if (!known<T>(it, kind)) return INVALID_VALUE;
    static_cast<T*>(it)->kind = Kind(0);
    delete static_cast<T*>(it);
    return SUCCESS;
}

}  // namespace

extern "C" {

int cublasLtCreate(void** handle) {
    *handle = new Handle;
    return SUCCESS;
}
int cublasLtDestroy(void* handle) { return destroy<Handle>(handle, HANDLE); }
// 12.0.0, though it is none.
size_t cublasLtGetVersion() { return 120000; }
const char* cublasLtGetStatusString(int status) {
    switch (status) {
        case SUCCESS: return "the operation completed";
        case NOT_INITIALIZED: return "the library was not initialized";
        case INVALID_VALUE: return "an unsupported value or parameter was passed";
        case NOT_SUPPORTED: return "the functionality is not supported";
        default: return "unknown";
    }
}

int cublasLtMatmulDescCreate(void** made, int32_t compute, int32_t scale) {
    auto* it = new Matmul;
    it->compute = compute, it->scale = scale;
    *made = it;
    return SUCCESS;
}
int cublasLtMatmulDescDestroy(void* it) { return destroy<Matmul>(it, MATMUL); }
int cublasLtMatmulDescSetAttribute(void* it, int32_t which, const void* from, size_t bytes) {
    return set<Matmul>(it, MATMUL, which, from, bytes);
}

int cublasLtMatrixLayoutCreate(void** made, int32_t type, uint64_t rows, uint64_t cols,
                               int64_t ld) {
    auto* it = new Layout;
    it->type = type, it->rows = rows, it->cols = cols, it->ld = ld;
    *made = it;
    return SUCCESS;
}
int cublasLtMatrixLayoutDestroy(void* it) { return destroy<Layout>(it, LAYOUT); }

int cublasLtMatmulPreferenceCreate(void** made) {
    *made = new Preference;
    return SUCCESS;
}
int cublasLtMatmulPreferenceDestroy(void* it) { return destroy<Preference>(it, PREFERENCE); }
int cublasLtMatmulPreferenceSetAttribute(void* it, int32_t which, const void* from, size_t bytes) {
    return set<Preference>(it, PREFERENCE, which, from, bytes);
}

int cublasLtMatmulAlgoGetHeuristic(void* handle, void* matmul, void* a, void* b, void* c, void* d,
                                   void* preference, int wanted, void* results, int* found) {
    *found = 0;
    if (!known<Handle>(handle, HANDLE)) return NOT_INITIALIZED;
    const auto* prefers = known<Preference>(preference, PREFERENCE);
    if (!prefers || wanted <= 0) return INVALID_VALUE;
    Problem problem;
    if (const Status status = problem.open(matmul, a, b, c, d)) return status;
    for (int32_t id : {1, 0, 2}) {
        const uint64_t alignment = id == 1 ? 16 : size_of(problem.a->type);
        Algorithm algorithm{ALGORITHM, problem.signature(), id, id == 2 ? 2 : 1, alignment, 0, {}};
        algorithm.workspace = problem.workspace(algorithm);
        bool can = problem.allows(alignment) && algorithm.workspace <= prefers->workspace;
        for (uint32_t promised : prefers->alignment) can = can && promised % alignment == 0;
        // An epilogue with a second matrix moves whole vectors; halves have no epilogue.
        if (problem.matmul->epilogue & AUX) can = can && id == 1;
        if (id == 2)
            can = can && problem.matmul->epilogue == DEFAULT && problem.k > 1 &&
                  prefers->reductions & IN_COMPUTE_TYPE;
        if (!can || *found == wanted) continue;
        const Result result{algorithm, algorithm.workspace, SUCCESS, 1.0f, {}};
        std::memcpy(static_cast<Result*>(results) + (*found)++, &result, sizeof result);
    }
    return *found ? SUCCESS : NOT_SUPPORTED;
}

int cublasLtMatmulAlgoCheck(void* handle, void* matmul, void* a, void* b, void* c, void* d,
                            const void* algorithm, void* result) {
    if (!known<Handle>(handle, HANDLE)) return NOT_INITIALIZED;
    Problem problem;
    if (const Status status = problem.open(matmul, a, b, c, d)) return status;
    Algorithm it;
    std::memcpy(&it, algorithm, sizeof it);
    if (it.magic != ALGORITHM || it.signature != problem.signature()) return INVALID_VALUE;
    if (!problem.allows(it.alignment)) return NOT_SUPPORTED;
    const Result checked{it, problem.workspace(it), SUCCESS, 1.0f, {}};
    std::memcpy(result, &checked, sizeof checked);
    return SUCCESS;
}

// Identity, tile, splits, reduction scheme, swizzling, custom option, stages.
int cublasLtMatmulAlgoConfigGetAttribute(const void* algorithm, int32_t which, void* to,
                                         size_t bytes, size_t* written) {
    Algorithm it;
    std::memcpy(&it, algorithm, sizeof it);
    if (it.magic != ALGORITHM || which < 0 || which > 6 || bytes != 4) return INVALID_VALUE;
    const int32_t values[] = {it.id, 20, it.halves, it.halves > 1 ? 2 : 0, 0, 0, 0};
    std::memcpy(to, &values[which], 4);
    if (written) *written = 4;
    return SUCCESS;
}

int cublasLtMatmul(void* handle, void* matmul, const float* alpha, const void* a, void* a_layout,
                   const void* b, void* b_layout, const float* beta, const void* c, void* c_layout,
                   void* d, void* d_layout, const void* algorithm, void* workspace,
                   size_t workspace_bytes, void*) {
    Result checked;
    const int status = cublasLtMatmulAlgoCheck(handle, matmul, a_layout, b_layout, c_layout,
                                               d_layout, algorithm, &checked);
    if (status) return status;
    Problem of;
    of.open(matmul, a_layout, b_layout, c_layout, d_layout);
    const Algorithm& it = checked.algorithm;
    for (const void* operand : {a, b, c, static_cast<const void*>(d)})
        if (!operand || uintptr_t(operand) % it.alignment) return INVALID_VALUE;
    if (workspace_bytes < checked.workspace || uintptr_t(workspace) % WORKSPACE_ALIGNMENT ||
        (checked.workspace && !workspace))
        return INVALID_VALUE;
    const Span out(d, *of.d);
    if (out.meets(Span(a, *of.a)) || out.meets(Span(b, *of.b))) return INVALID_VALUE;
    if (*beta != 0 && c != d && out.meets(Span(c, *of.c))) return INVALID_VALUE;

    const bool tf32 = of.matmul->compute == COMPUTE_32F_FAST_TF32;
    const std::vector<float> first = opened(a, *of.a, of.matmul->transposed[0], tf32);
    const std::vector<float> second = opened(b, *of.b, of.matmul->transposed[1], tf32);
    std::vector<float> sums(of.m * of.n);
    if (it.halves > 1) {
        float* halves = static_cast<float*>(workspace);
        add_up(halves, first, second, of, 0, of.k / 2);
        add_up(halves + of.m * of.n, first, second, of, of.k / 2, of.k);
        for (uint64_t i = 0; i < of.m * of.n; i++) sums[i] = halves[i] + halves[of.m * of.n + i];
    } else {
        add_up(sums.data(), first, second, of, 0, of.k);
    }
    finish(of, sums, *alpha, *beta, c, d);
    if (of.matmul->epilogue & BGRADB)
        for (uint64_t j = 0; j < of.n; j++) {
            float sum = 0;
            for (uint64_t l = 0; l < of.k; l++) sum += second[j * of.k + l];
            store(of.matmul->bias, of.d->type, j, sum);
        }
    return SUCCESS;
}

}  // extern "C"
