// Memory that kernels may use, between what they may not.

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "scheduler.h"

namespace emulator {

constexpr size_t PAGE = 4096;
// Every GPU aligns its memory to more; kernels may rely on 16.
constexpr size_t ALIGNMENT = 16;

static size_t rounded(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

// Between two pages out of reach lie: a gap, the memory, and a tail of less than ALIGNMENT bytes
// up to the second page. Gap and tail hold poison, which is looked at after each launch. (Without
// a tail the memory would not be aligned where kernels rely on it.)
struct Allocation {
    char* first;
    size_t bytes;

    size_t inner() const { return rounded(bytes, PAGE); }
    size_t gap() const { return inner() - rounded(bytes, ALIGNMENT); }
    char* pages() const { return first - gap() - PAGE; }
    char* end() const { return first + bytes; }
    size_t tail() const { return rounded(bytes, ALIGNMENT) - bytes; }
};

static std::mutex mutex;
static std::map<const char*, Allocation>& allocations() {
    static std::map<const char*, Allocation> all;
    return all;
}

static void* allocate(size_t bytes) {
    Allocation it{nullptr, bytes};
    void* memory = mmap(nullptr, it.inner() + 2 * PAGE, PROT_NONE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    char* inner = static_cast<char*>(memory) + PAGE;
    if (it.inner() && mprotect(inner, it.inner(), PROT_READ | PROT_WRITE) != 0) {
        munmap(memory, it.inner() + 2 * PAGE);
        return nullptr;
    }
    memset(inner, POISON, it.inner());
    it.first = inner + it.gap();
    forbid(inner, it.gap());
    forbid(it.end(), it.tail());
    const std::lock_guard<std::mutex> lock(mutex);
    allocations()[it.first] = it;
    return it.first;
}

static void release(void* first) {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = allocations().find(static_cast<char*>(first));
    const Allocation it = found->second;
    allocations().erase(found);
    permit(it.first - it.gap(), it.inner());
    munmap(it.pages(), it.inner() + 2 * PAGE);
}

// The number of the first byte that is not poison, or `bytes`.
static size_t first_written(const char* from, size_t bytes) {
    size_t i = 0;
    while (i < bytes && static_cast<unsigned char>(from[i]) == POISON) i++;
    return i;
}

void check_memory(const Launch& launch) {
    const std::lock_guard<std::mutex> lock(mutex);
    const std::string& signature = launch.kernel->signature;
    for (size_t i = 0; 2 * i < signature.size(); i++) {
        if (signature[2 * i] == 'v') continue;
        const char* pointer = *static_cast<char**>(launch.arguments[i]);
        auto next = allocations().upper_bound(pointer);
        if (next == allocations().begin()) continue;
        const Allocation& it = std::prev(next)->second;
        if (pointer > it.end()) continue;
        const size_t behind = first_written(it.end(), it.tail());
        // A whole gap would take long to look at.
        const size_t near = std::min<size_t>(it.gap(), 256);
        const size_t before = first_written(it.first - near, near);
        if (behind == it.tail() && before == near) continue;
        say("emulator: kernel %s: a write %zu bytes %s the memory of argument %zu "
                "(%zu bytes), by any thread\n", launch.kernel->name,
                behind < it.tail() ? behind : near - before,
                behind < it.tail() ? "beyond the end of" : "before", i, it.bytes);
        abort();
    }
}

}  // namespace emulator

// What ../src/lib.rs calls. Null when there is no memory.
extern "C" void* emulator_allocate(size_t bytes) { return emulator::allocate(bytes); }
extern "C" void emulator_free(void* memory) { emulator::release(memory); }
