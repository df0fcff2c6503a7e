// The state of a block of threads: its threads, barriers, warps and shared memory.
// The functions are defined in ../runtime/block.cpp and ../runtime/scheduler.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "fiber.h"
#include "sanitize.h"
#include "site.h"

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace emulator {

constexpr unsigned WARP = 32;
constexpr unsigned BARRIERS = 16;
// The most shared memory of a block, static and dynamic together; as in ../src/lib.rs.
constexpr size_t SHARED_BYTES_MAX = 99 << 10;
// Bytes behind each array that must still hold the poison when the block ends. The first of them
// are looked at whenever a thread waits or ends, which tells the thread.
constexpr size_t SHARED_GUARD_BYTES = 256;
constexpr size_t SHARED_GUARD_NEAR_BYTES = 16;
// Room for arrays and guards.
constexpr size_t SHARED_REGION_BYTES = SHARED_BYTES_MAX + (64 << 10);
// Every byte of shared memory before it is written: NaN in each float format.
constexpr int POISON = 0xFF;

struct Block;

// One 16-byte cp.async that was issued and not yet performed.
struct AsyncCopy {
    char* to;
    const void* from;  // null: zero fill
};

// A CUDA thread.
struct Thread {
    Block* block = nullptr;
    dim3 index;
    unsigned linear = 0, lane = 0, warp = 0;
    bool done = true;
    // Runnable when waits_on is null or *waits_on is no longer waits_value.
    const unsigned* waits_on = nullptr;
    unsigned waits_value = 0;
    const char* waits_in = "";
    Site site{"", 0};  // of the last barrier or collective
    std::vector<AsyncCopy> copies;              // not yet committed
    std::deque<std::vector<AsyncCopy>> groups;  // committed, oldest first
    Fiber fiber;
};

struct Barrier {
    unsigned generation = 0, arrived = 0, expected = 0;
    Site site{"", 0};
    char tokens[2] = {};
};

// A meeting of the lanes of one mask; the last to arrive computes for all.
struct Collective {
    unsigned generation = 0, arrived = 0, mask = 0;
    const char* name = "";
    Site site{"", 0};
    void* slots[WARP];
};

// Collectives of disjoint masks run side by side: each is kept at the lowest lane of its mask.
struct Warp {
    Collective collectives[WARP];
};

struct StaticArray {
    const void* key;
    size_t offset, bytes;
    const char* name;
    Site site;  // of the declaration
};

struct Block {
    dim3 grid, size, index;
    unsigned threads_total = 0, exited = 0;
    std::vector<Thread*> threads;
    std::vector<Warp> warps;
    Barrier barriers[BARRIERS];
    char* shared = nullptr;
    size_t dynamic_bytes = 0, static_bytes = 0, shared_top = 0;
    std::vector<StaticArray> arrays;
};

// The thread that runs on this OS thread now.
extern __thread Thread* current;
// The schedule of the launch in progress: whether cp.async lands when it is waited for.
extern __thread bool copies_land_late;

// Lets others run until *word differs from value.
void wait_for_change(const unsigned* word, unsigned value, const char* what, Site site);
// Lets others run once.
void yield();

// Waits for `threads` threads (0: all of the block) at barrier `id`.
void barrier(unsigned id, unsigned threads, Site site);

// Memory of a SHARED array; the same key gives every thread of the block the same memory.
void* static_shared(const void* key, size_t bytes, const char* name, Site site);
inline void* dynamic_shared() { return current->block->shared; }
// Fails where the running thread, which has come to `site`, wrote just behind an array.
void check_shared_guards(Site site);

// The 32-bit shared address of p.
uint32_t shared_offset(const void* p, Site site);
// The memory at a 32-bit shared address; fails unless `bytes` bytes there are allocated and
// aligned to `bytes`.
char* shared_memory(uint32_t address, unsigned bytes, const char* what, Site site);
// Fails unless p is aligned to `bytes`.
inline void check_aligned(const void* p, unsigned bytes, const char* what, Site site) {
    if (reinterpret_cast<uintptr_t>(p) % bytes != 0)
        fail(site, "%s at %p is not aligned to %u bytes", what, p, bytes);
}

// Lane's arrival at a collective. True for the last one, which must then call `complete`; the
// others have waited until it did.
bool arrive(Collective*& collective, unsigned& mask, const char* name, void* slot, Site site);
void complete(Collective& collective);

// Runs `operation(slots, mask)` once, when all lanes of `mask` have brought their slot.
template <class Operation>
void warp_collective(unsigned mask, const char* name, void* slot, Site site, Operation operation) {
    Collective* collective;
    if (arrive(collective, mask, name, slot, site)) {
        const Hidden hidden;
        operation(collective->slots, mask);
        complete(*collective);
    }
}

}  // namespace emulator
