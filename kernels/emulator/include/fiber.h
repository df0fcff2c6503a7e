// A stack and a saved register state: what one CUDA thread runs on.
// Switching is a few instructions on x86-64 and ucontext's swapcontext elsewhere, or everywhere
// with -DEMULATOR_UCONTEXT.
#pragma once

#include <cstddef>

#include "sanitize.h"

#if !defined(__x86_64__) && !defined(EMULATOR_UCONTEXT)
#define EMULATOR_UCONTEXT 1
#endif
#ifdef EMULATOR_UCONTEXT
#include <ucontext.h>
#endif

namespace emulator {

// Kernels keep their arrays in registers, so a few KiB would do; pages are only taken when touched.
#if defined(EMULATOR_ASAN) || defined(EMULATOR_TSAN)
constexpr size_t STACK_BYTES = 512 << 10;  // their frames are larger
#else
constexpr size_t STACK_BYTES = 128 << 10;
#endif

class Fiber {
public:
    Fiber() = default;
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;
    ~Fiber();

    // Makes the next switch to this fiber call `entry`, which must never return.
    void prepare(void (*entry)());
    // Makes this the fiber of the OS thread itself, which runs now.
    void adopt();
    // Saves the running state in `from` and goes on where this fiber stopped.
    void resume(Fiber& from);
    // The first thing that `entry` must call.
    static void entered();

private:
    char* stack = nullptr;  // null for the OS thread's own
#if defined(EMULATOR_TSAN)
    void* tsan = nullptr;
#endif
#if defined(EMULATOR_ASAN)
    void* asan = nullptr;
    const void* bottom = nullptr;
    size_t bytes = 0;
#endif
#ifdef EMULATOR_UCONTEXT
    ucontext_t context;
#else
    void* stack_pointer = nullptr;
#endif
};

}  // namespace emulator
