// Barriers, shared memory and the meetings of warps.

#include "block.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "scheduler.h"

namespace emulator {

void begin_block(Block& block, const Launch& launch, uint64_t index) {
    const dim3 grid = launch.grid;
    block.grid = grid;
    block.size = launch.block;
    block.index = dim3(unsigned(index % grid.x), unsigned(index / grid.x % grid.y),
                       unsigned(index / grid.x / grid.y));
    block.threads_total = unsigned(block.threads.size());
    block.exited = 0;
    block.warps.assign((block.threads_total + WARP - 1) / WARP, Warp{});
    std::fill(std::begin(block.barriers), std::end(block.barriers), Barrier{});
#if defined(EMULATOR_TSAN)
    // New memory, as the accesses of a block that had the old one are not ordered with this one's.
    if (block.shared) munmap(block.shared, SHARED_REGION_BYTES);
    block.shared = nullptr;
#endif
    if (!block.shared) {
        void* memory = mmap(nullptr, SHARED_REGION_BYTES, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) fail(Site{"", 0}, "no memory for the block's shared memory");
        block.shared = static_cast<char*>(memory);
        block.shared_top = SHARED_REGION_BYTES;
    }
    // Beyond what the last block used, all is still poisoned: its end was checked.
    permit(block.shared, SHARED_REGION_BYTES);
    memset(block.shared, POISON, block.shared_top);
    forbid(block.shared + launch.shared_bytes, SHARED_REGION_BYTES - launch.shared_bytes);
    block.dynamic_bytes = launch.shared_bytes;
    block.static_bytes = 0;
    block.shared_top = launch.shared_bytes + SHARED_GUARD_BYTES;
    block.arrays.clear();
}

void* static_shared(const void* key, size_t bytes, const char* name, Site site) {
    Block& block = *current->block;
    for (const StaticArray& array : block.arrays)
        if (array.key == key) return block.shared + array.offset;
    const size_t offset = (block.shared_top + 15) / 16 * 16;
    const size_t top = offset + bytes + SHARED_GUARD_BYTES;
    block.static_bytes = (block.static_bytes + 15) / 16 * 16 + bytes;
    if (block.static_bytes + block.dynamic_bytes > SHARED_BYTES_MAX || top > SHARED_REGION_BYTES)
        fail(site, "%s: a block has at most %zu bytes of shared memory, got %zu of static arrays "
             "and %zu dynamic", name, SHARED_BYTES_MAX, block.static_bytes, block.dynamic_bytes);
    block.arrays.push_back({key, offset, bytes, name, site});
    block.shared_top = top;
    permit(block.shared + offset, bytes);
    return block.shared + offset;
}

// The first byte in [from, to) that is not poison, or `to`.
static size_t first_written(const Block& block, size_t from, size_t to) {
    while (from < to && static_cast<unsigned char>(block.shared[from]) == POISON) from++;
    return from;
}

// `array` is null for the dynamic memory.
static void fail_overrun(const Block& block, const StaticArray* array, size_t beyond,
                         const char* when, Site site) {
    if (array)
        fail(site, "a write %zu bytes beyond the end of shared array %s (%zu bytes, %s:%d)%s",
             beyond, array->name, array->bytes, array->site.file, array->site.line, when);
    fail(site, "a write %zu bytes beyond the end of dynamic shared memory (%zu bytes)%s", beyond,
         block.dynamic_bytes, when);
}

static bool is_poison(const char* bytes_16) {
    uint64_t words[2];
    memcpy(words, bytes_16, sizeof words);
    return (words[0] & words[1]) == ~uint64_t(0);
}

static void check_guards(const Block& block, size_t bytes, const char* when, Site site) {
    const auto check = [&](const StaticArray* array, size_t end) {
        const size_t found = first_written(block, end, end + bytes);
        if (found < end + bytes) fail_overrun(block, array, found - end, when, site);
    };
    check(nullptr, block.dynamic_bytes);
    for (const StaticArray& array : block.arrays) check(&array, array.offset + array.bytes);
}

void check_shared_guards(Site site) {
    const Block& block = *current->block;
    static_assert(SHARED_GUARD_NEAR_BYTES == 16, "as is_poison takes them");
    bool whole = is_poison(block.shared + block.dynamic_bytes);
    for (const StaticArray& array : block.arrays)
        whole &= is_poison(block.shared + array.offset + array.bytes);
    if (!whole) check_guards(block, SHARED_GUARD_NEAR_BYTES, ", before the place named", site);
}

void end_block(Block& block) {
    current = block.threads[0];
    check_guards(block, SHARED_GUARD_BYTES, ", by any thread of the block", Site{"", 0});
    current = nullptr;
    permit(block.shared, SHARED_REGION_BYTES);
}

uint32_t shared_offset(const void* p, Site site) {
    const ptrdiff_t offset = static_cast<const char*>(p) - current->block->shared;
    if (offset < 0 || size_t(offset) > SHARED_REGION_BYTES) fail(site, "%p is no shared memory", p);
    return uint32_t(offset);
}

char* shared_memory(uint32_t address, unsigned bytes, const char* what, Site site) {
    const Block& block = *current->block;
    if (address % bytes != 0)
        fail(site, "%s, shared address %u, is not aligned to %u bytes", what, address, bytes);
    const size_t end = size_t(address) + bytes;
    bool inside = end <= block.dynamic_bytes;
    for (const StaticArray& array : block.arrays)
        inside |= address >= array.offset && end <= array.offset + array.bytes;
    if (!inside)
        fail(site, "%s, shared address %u, is outside the block's shared memory (%zu bytes "
             "dynamic, %zu static arrays)", what, address, block.dynamic_bytes,
             block.arrays.size());
    return block.shared + address;
}

void barrier(unsigned id, unsigned threads, Site site) {
    Block& block = *current->block;
    if (id >= BARRIERS) fail(site, "barrier %u: there are barriers 0 to 15", id);
    if (threads % WARP != 0 || threads > block.threads_total)
        fail(site, "barrier %u: %u threads is not a multiple of 32 in a block of %u", id, threads,
             block.threads_total);
    Barrier& barrier = block.barriers[id];
    const unsigned expected = threads ? threads : block.threads_total;
    if (threads == 0 && block.exited)
        fail(site, "__syncthreads after %u threads of the block have exited", block.exited);
    if (barrier.arrived) {
        if (barrier.expected != expected)
            fail(site, "barrier %u: %u threads expected here, %u at %s:%d", id, expected,
                 barrier.expected, barrier.site.file, barrier.site.line);
        if (id == 0 && (barrier.site.line != site.line || strcmp(barrier.site.file, site.file)))
            fail(site, "divergent barrier: other threads of the block wait at %s:%d",
                 barrier.site.file, barrier.site.line);
    }
    check_shared_guards(site);
    barrier.site = site;
    barrier.expected = expected;
    const unsigned generation = barrier.generation;
    // Two tokens: who is late to leave one generation must not observe the arrivals of the next.
    const void* token = &barrier.tokens[generation % 2];
    happened(token);
    if (++barrier.arrived == expected) {
        barrier.arrived = 0;
        barrier.generation++;
        current->site = site;
    } else {
        wait_for_change(&barrier.generation, generation, "a barrier", site);
    }
    observe(token);
}

void thread_exits(Thread& thread) {
    Block& block = *thread.block;
    check_shared_guards(thread.site);
    block.exited++;
    const Barrier& barrier = block.barriers[0];
    if (barrier.arrived)
        fail(thread.site, "divergent barrier: this thread exits (after the place named) while %u "
             "others of its block wait at %s:%d", barrier.arrived, barrier.site.file,
             barrier.site.line);
}

bool arrive(Collective*& joined, unsigned& mask, const char* name, void* slot, Site site) {
    Thread& thread = *current;
    check_shared_guards(site);
    const unsigned first = thread.warp * WARP, total = thread.block->threads_total;
    // The last warp of a block may have fewer than 32 lanes; ~0 means all of them.
    if (first + WARP > total && mask == ~0u) mask = (1u << (total - first)) - 1;
    if (!(mask >> thread.lane & 1))
        fail(site, "%s: lane %u is not in its own mask %#x", name, thread.lane, mask);
    Collective& collective =
        thread.block->warps[thread.warp].collectives[__builtin_ctz(mask)];
    if (collective.arrived) {
        const bool same_place = collective.site.line == site.line &&
                                strcmp(collective.site.file, site.file) == 0;
        // Lanes may reach __syncwarp from different places.
        const bool same = strcmp(collective.name, name) == 0 && collective.mask == mask &&
                          (same_place || strcmp(name, "__syncwarp") == 0);
        if (!same)
            fail(site, "mismatched collectives: lane %u is at %s with mask %#x, other lanes of "
                 "its warp at %s with mask %#x, %s:%d", thread.lane, name, mask, collective.name,
                 collective.mask, collective.site.file, collective.site.line);
    }
    collective.name = name;
    collective.site = site;
    collective.mask = mask;
    collective.slots[thread.lane] = slot;
    thread.site = site;
    joined = &collective;
    const unsigned generation = collective.generation;
    if (++collective.arrived == unsigned(__builtin_popcount(mask))) return true;
    wait_for_change(&collective.generation, generation, name, site);
    return false;
}

void complete(Collective& collective) {
    collective.arrived = 0;
    collective.generation++;
}

}  // namespace emulator
