// What sanitizers must be told: the running fiber, the memory kernels may use, what orders them.
// Kernels are compiled with -fsanitize, the runtime is not; without a sanitizer all is empty.
// Declarations: compiler-rt's sanitizer/{asan,tsan,common}_interface*.h, which GCC implements too.
#pragma once

#include <cstddef>

#if defined(EMULATOR_TSAN)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* token);
void __tsan_release(void* token);
void __tsan_read_range(void* from, size_t bytes);
void __tsan_write_range(void* to, size_t bytes);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif
#if defined(EMULATOR_ASAN)
extern "C" {
void __sanitizer_start_switch_fiber(void** save, const void* bottom, size_t bytes);
void __sanitizer_finish_switch_fiber(void* save, const void** bottom_old, size_t* bytes_old);
void __asan_poison_memory_region(const volatile void* first, size_t bytes);
void __asan_unpoison_memory_region(const volatile void* first, size_t bytes);
}
#endif
#if defined(EMULATOR_ASAN) || defined(EMULATOR_TSAN) || defined(EMULATOR_UBSAN)
extern "C" void __sanitizer_set_death_callback(void (*callback)());
#endif

namespace emulator {

// Everything before a `happened` comes before what follows an `observe` of the same token.
inline void happened([[maybe_unused]] const void* token) {
#if defined(EMULATOR_TSAN)
    __tsan_release(const_cast<void*>(token));
#endif
}
inline void observe([[maybe_unused]] const void* token) {
#if defined(EMULATOR_TSAN)
    __tsan_acquire(const_cast<void*>(token));
#endif
}

// Accesses that the runtime makes for the running thread.
inline void reads([[maybe_unused]] const void* from, [[maybe_unused]] size_t bytes) {
#if defined(EMULATOR_TSAN)
    __tsan_read_range(const_cast<void*>(from), bytes);
#endif
}
inline void writes([[maybe_unused]] void* to, [[maybe_unused]] size_t bytes) {
#if defined(EMULATOR_TSAN)
    __tsan_write_range(to, bytes);
#endif
}

// While one lives, the accesses of the running thread are the emulator's own.
struct Hidden {
    Hidden() {
#if defined(EMULATOR_TSAN)
        AnnotateIgnoreReadsBegin("", 0);
        AnnotateIgnoreWritesBegin("", 0);
#endif
    }
    ~Hidden() {
#if defined(EMULATOR_TSAN)
        AnnotateIgnoreWritesEnd("", 0);
        AnnotateIgnoreReadsEnd("", 0);
#endif
    }
    Hidden(const Hidden&) = delete;
    Hidden& operator=(const Hidden&) = delete;
};

// Whether a kernel may touch the memory.
inline void forbid([[maybe_unused]] const void* first, [[maybe_unused]] size_t bytes) {
#if defined(EMULATOR_ASAN)
    __asan_poison_memory_region(first, bytes);
#endif
}
inline void permit([[maybe_unused]] const void* first, [[maybe_unused]] size_t bytes) {
#if defined(EMULATOR_ASAN)
    __asan_unpoison_memory_region(first, bytes);
#endif
}

}  // namespace emulator
