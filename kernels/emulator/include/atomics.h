// Atomics on global and shared memory, and the fences.
#pragma once

#include "block.h"

namespace emulator {

// Replaces *address by change(*address) and returns what was there.
template <class T, class Change> T atomic_update(T* address, Site site, Change change) {
    check_aligned(address, sizeof(T), "an atomic", site);
    T old;
    __atomic_load(address, &old, __ATOMIC_RELAXED);
    for (;;) {
        T changed = change(old);
        if (__atomic_compare_exchange(address, &old, &changed, true, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED))
            return old;
    }
}

}  // namespace emulator

#define EMULATOR_ATOMIC(name, expression)                                                        \
    template <class T, class V>                                                                  \
    T name(T* address, V operand, emulator::Site site = EMULATOR_HERE) {                         \
        const T value = T(operand);                                                              \
        return emulator::atomic_update(address, site,                                            \
                                       [=](T old) -> T { return T(expression); });               \
    }
EMULATOR_ATOMIC(atomicAdd, old + value)
EMULATOR_ATOMIC(atomicSub, old - value)
EMULATOR_ATOMIC(atomicMax, old > value ? old : value)
EMULATOR_ATOMIC(atomicMin, old < value ? old : value)
EMULATOR_ATOMIC(atomicAnd, old & value)
EMULATOR_ATOMIC(atomicOr, old | value)
EMULATOR_ATOMIC(atomicXor, old ^ value)
EMULATOR_ATOMIC(atomicExch, (void(old), value))
EMULATOR_ATOMIC(atomicInc, old >= value ? T(0) : old + 1)
#undef EMULATOR_ATOMIC

template <class T>
T atomicCAS(T* address, T expected, T value, emulator::Site site = EMULATOR_HERE) {
    return emulator::atomic_update(address, site,
                                   [=](T old) { return old == expected ? value : old; });
}

// A sanitizer takes each fence to be ordered after all fences before it, by whatever the threads
// tell each other in between.
inline void __threadfence() {
    static const char token = 0;
    emulator::happened(&token);
#if !defined(EMULATOR_TSAN)
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
    emulator::observe(&token);
}
inline void __threadfence_block() { __threadfence(); }
// Spin loops must call it: it lets other threads run.
inline void __nanosleep(unsigned) { emulator::yield(); }
