// bf16 and fp16: conversions round to nearest even, arithmetic is done in float and rounded.
#pragma once

#include <cstdint>
#include <cstring>

namespace emulator {

// IEEE's binary16. GCC knows it by the standard's name on ARM only since 13.
#ifdef __aarch64__
using half = __fp16;
#else
using half = _Float16;
#endif

template <class To, class From> To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "as many bits");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

}  // namespace emulator

struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return emulator::bit_cast<float>(uint32_t(x.bits) << 16); }
inline float to_float(f16 x) { return emulator::bit_cast<emulator::half>(x.bits); }

template <typename T> T from_float(float x);
template <> inline float from_float<float>(float x) { return x; }
template <> inline bf16 from_float<bf16>(float x) {
    const uint32_t bits = emulator::bit_cast<uint32_t>(x);
    if (x != x) return bf16{0x7FFF};  // the NaN that the GPU makes
    return bf16{uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}
template <> inline f16 from_float<f16>(float x) {
    if (x != x) return f16{0x7FFF};
    return f16{emulator::bit_cast<uint16_t>(static_cast<emulator::half>(x))};
}

#define EMULATOR_ARITHMETIC(T)                                                                  \
    inline T operator+(T a, T b) { return from_float<T>(to_float(a) + to_float(b)); }            \
    inline T operator-(T a, T b) { return from_float<T>(to_float(a) - to_float(b)); }            \
    inline T operator*(T a, T b) { return from_float<T>(to_float(a) * to_float(b)); }            \
    inline T operator/(T a, T b) { return from_float<T>(to_float(a) / to_float(b)); }            \
    inline bool operator<(T a, T b) { return to_float(a) < to_float(b); }                        \
    inline bool operator>(T a, T b) { return to_float(a) > to_float(b); }                        \
    inline bool operator==(T a, T b) { return to_float(a) == to_float(b); }
EMULATOR_ARITHMETIC(bf16)
EMULATOR_ARITHMETIC(f16)
#undef EMULATOR_ARITHMETIC
