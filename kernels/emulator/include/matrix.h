// ldmatrix and mma.sync. Layouts: PTX ISA 8.7, 9.7.14.5.7 "Matrix Fragments for mma.m16n8k8",
// 9.7.14.5.8 "Matrix Fragments for mma.m16n8k16 with floating point type" (its elements 2 r and
// 2 r + 1 are register r) and "Warp-level matrix load instruction: ldmatrix". With group = lane / 4
// and pair = lane % 4 * 2, a register holds two 16-bit elements, the lower column (of A, C, D) or
// row (of B) in its low half:
//   A (16 x k): register r: row group + 8 (r % 2), columns pair + 8 (r / 2) and the next
//   B (k x 8):  register r: rows pair + 8 r and the next, column group
//   C, D:       d[0], d[1]: row group, columns pair, pair + 1; d[2], d[3]: row group + 8
//   ldmatrix:   register m of a lane: row group of 8x8 matrix m, columns pair and the next (of its
//               transpose with .trans); lane 8 m + i holds the address of row i of matrix m.
#pragma once

#include "block.h"
#include "numbers.h"

namespace emulator {

// On sm_75 every lane must hold a valid address, also those that x1 and x2 do not read.
void load_matrix(uint32_t* registers, int matrices, bool transposed, uint32_t address, Site site);
void multiply(float* d, const uint32_t* a, const uint32_t* b, int k, bool is_bf16, Site site);

}  // namespace emulator

#define EMULATOR_LOAD_MATRIX(N)                                                                  \
    inline void load_matrix_x##N(uint32_t (&r)[N], uint32_t address SITE) {                      \
        emulator::load_matrix(r, N, false, address, site);                                       \
    }                                                                                            \
    inline void load_matrix_x##N##_transposed(uint32_t (&r)[N], uint32_t address SITE) {         \
        emulator::load_matrix(r, N, true, address, site);                                        \
    }
EMULATOR_LOAD_MATRIX(1)
EMULATOR_LOAD_MATRIX(2)
EMULATOR_LOAD_MATRIX(4)
#undef EMULATOR_LOAD_MATRIX

// d += a b, accumulated in f32. The last argument only names the type.
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bf16 SITE) {
    emulator::multiply(d, a, b, 16, true, site);
}
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], f16 SITE) {
    emulator::multiply(d, a, b, 16, false, site);
}
inline void mma_m16n8k8(float (&d)[4], const uint32_t (&a)[2], const uint32_t (&b)[1], bf16 SITE) {
    emulator::multiply(d, a, b, 8, true, site);
}
inline void mma_m16n8k8(float (&d)[4], const uint32_t (&a)[2], const uint32_t (&b)[1], f16 SITE) {
    emulator::multiply(d, a, b, 8, false, site);
}
