// ldmatrix and mma.sync, once for a warp. The layouts are described in ../include/matrix.h.

#include "matrix.h"

#include <cstring>

namespace emulator {

void load_matrix(uint32_t* registers, int matrices, bool transposed, uint32_t address, Site site) {
    struct Slot {
        const char* row;
        uint32_t* registers;
    } slot{shared_memory(address, 16, "a row of ldmatrix", site), registers};
    reads(slot.row, 16);
    static const char* const names[] = {"ldmatrix",    "ldmatrix.trans",    "ldmatrix.x2",
                                        "ldmatrix.x2.trans", "ldmatrix.x4", "ldmatrix.x4.trans"};
    const char* name = names[matrices / 2 * 2 + transposed];
    warp_collective(~0u, name, &slot, site, [&](void** slots, unsigned mask) {
        if (mask != ~0u) fail(site, "%s: the warp has fewer than 32 lanes", name);
        for (int m = 0; m < matrices; m++) {
            uint16_t rows[8][8];
            for (int i = 0; i < 8; i++)
                memcpy(rows[i], static_cast<Slot*>(slots[8 * m + i])->row, sizeof rows[i]);
            for (int lane = 0; lane < 32; lane++) {
                const int group = lane / 4, pair = lane % 4 * 2;
                const uint16_t low = transposed ? rows[pair][group] : rows[group][pair];
                const uint16_t high = transposed ? rows[pair + 1][group] : rows[group][pair + 1];
                static_cast<Slot*>(slots[lane])->registers[m] = low | uint32_t(high) << 16;
            }
        }
    });
}

template <class T> static void unpack(uint32_t packed, float& low, float& high) {
    low = to_float(T{uint16_t(packed)});
    high = to_float(T{uint16_t(packed >> 16)});
}

namespace {
struct Slot {
    float* d;
    const uint32_t *a, *b;
};
}  // namespace

// Products are exact in f32 and added in the order of k; the hardware's order is not specified.
template <class T, int K> static void multiply_warp(void** slots) {
    float a[16][K], b[K][8], d[16][8];
    for (int lane = 0; lane < 32; lane++) {
        const Slot& slot = *static_cast<Slot*>(slots[lane]);
        const int group = lane / 4, pair = lane % 4 * 2;
        for (int r = 0; r < K / 4; r++) {
            float* at = &a[group + 8 * (r % 2)][pair + 8 * (r / 2)];
            unpack<T>(slot.a[r], at[0], at[1]);
        }
        for (int r = 0; r < K / 8; r++)
            unpack<T>(slot.b[r], b[pair + 8 * r][group], b[pair + 8 * r + 1][group]);
        memcpy(&d[group][pair], slot.d, 2 * sizeof(float));
        memcpy(&d[group + 8][pair], slot.d + 2, 2 * sizeof(float));
    }
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < K; k++)
            for (int j = 0; j < 8; j++) d[i][j] += a[i][k] * b[k][j];
    for (int lane = 0; lane < 32; lane++) {
        const int group = lane / 4, pair = lane % 4 * 2;
        float* out = static_cast<Slot*>(slots[lane])->d;
        memcpy(out, &d[group][pair], 2 * sizeof(float));
        memcpy(out + 2, &d[group + 8][pair], 2 * sizeof(float));
    }
}

void multiply(float* d, const uint32_t* a, const uint32_t* b, int k, bool is_bf16, Site site) {
    Slot slot{d, a, b};
    const char* name = is_bf16 ? (k == 16 ? "mma.m16n8k16.bf16" : "mma.m16n8k8.bf16")
                               : (k == 16 ? "mma.m16n8k16.f16" : "mma.m16n8k8.f16");
    warp_collective(~0u, name, &slot, site, [&](void** slots, unsigned mask) {
        if (mask != ~0u) fail(site, "%s: the warp has fewer than 32 lanes", name);
        if (k == 16)
            is_bf16 ? multiply_warp<bf16, 16>(slots) : multiply_warp<f16, 16>(slots);
        else
            is_bf16 ? multiply_warp<bf16, 8>(slots) : multiply_warp<f16, 8>(slots);
    });
}

}  // namespace emulator
