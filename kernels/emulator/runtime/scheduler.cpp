// Runs a launch: waves of blocks, whose threads take turns. A thread runs until it must wait; then
// the schedule's order says who is next.

#include "scheduler.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>

namespace emulator {

__thread Thread* current = nullptr;
__thread World* world = nullptr;
__thread bool copies_land_late = false;

// Straight to stderr through a small buffer: stdio would not fit a signal handler's stack.
static void say_list(const char* format, va_list arguments) {
    static __thread char text[1024];
    const int length = vsnprintf(text, sizeof text, format, arguments);
    const size_t shown = std::min<size_t>(length > 0 ? size_t(length) : 0, sizeof text - 1);
    if (write(STDERR_FILENO, text, shown) < 0) abort();
}

void say(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    say_list(format, arguments);
    va_end(arguments);
}

static void print_place(const Thread& thread, Site site) {
    const Block& block = *thread.block;
    const dim3 at = block.index, index = thread.index, size = block.size;
    say("emulator: kernel %s, block (%u, %u, %u), thread (%u, %u, %u) of %ux%ux%u",
        world->launch->kernel->name, at.x, at.y, at.z, index.x, index.y, index.z, size.x, size.y,
        size.z);
    if (site.line) say(", at %s:%d", site.file, site.line);
    say(": ");
}

void fail(Site site, const char* format, ...) {
    if (current) print_place(*current, site);
    va_list arguments;
    va_start(arguments, format);
    say_list(format, arguments);
    va_end(arguments);
    say("\n");
    abort();
}

// A kernel's stray pointer. The handler runs on the faulting thread, whose kernel is known.
static void on_fault(int signal_number, siginfo_t* info, void*) {
    signal(signal_number, SIG_DFL);
    if (current) {
        print_place(*current, current->site);
        say("access to %p, which is no memory of the kernel%s\n", info->si_addr,
            current->site.line ? " (after the place named)" : "");
    }
    raise(signal_number);
}

// A sanitizer has said what is wrong, but not in which thread.
[[maybe_unused]] static void on_sanitizer_report() {
    if (!current) return;
    print_place(*current, current->site);
    say("reported by the sanitizer%s\n", current->site.line ? " (after the place named)" : "");
}

static void install_fault_handler() {
    static std::once_flag once;
    std::call_once(once, [] {
#if defined(EMULATOR_ASAN) || defined(EMULATOR_TSAN) || defined(EMULATOR_UBSAN)
        __sanitizer_set_death_callback(on_sanitizer_report);
#endif
        struct sigaction action = {};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        sigaction(SIGSEGV, &action, nullptr);
        sigaction(SIGBUS, &action, nullptr);
    });
}

static bool runnable(const Thread& thread) {
    return !thread.done && (!thread.waits_on || *thread.waits_on != thread.waits_value);
}

static uint32_t next_random(World& w) {
    w.random = w.random * 1664525u + 1013904223u;
    return w.random >> 8;
}

// The next thread to run: by chance, or the next in the ring, of the own warp first, which keeps
// its stacks in the cache.
static Thread* pick() {
    World& w = *world;
    const size_t n = w.ring.size();
    size_t start = w.position;
    if (w.launch->schedule.order == RANDOM) {
        start = (start + next_random(w)) % n;
    } else {
        const size_t base = start / WARP * WARP, lanes = std::min<size_t>(WARP, n - base);
        for (size_t i = 1; i <= lanes; i++) {
            const size_t k = base + (start - base + i) % lanes;
            if (runnable(*w.ring[k])) return w.position = k, w.ring[k];
        }
    }
    for (size_t i = 1; i <= n; i++) {
        const size_t k = (start + i) % n;
        if (runnable(*w.ring[k])) return w.position = k, w.ring[k];
    }
    return nullptr;
}

[[noreturn]] static void deadlock() {
    constexpr int SHOWN_MAX = 8;
    int waiting = 0;
    for (const Thread* thread : world->ring) {
        if (thread->done) continue;
        if (waiting++ < SHOWN_MAX) {
            print_place(*thread, thread->site);
            say("deadlock: waits in %s\n", thread->waits_in);
        }
    }
    say("emulator: deadlock: %d threads wait and none can go on\n", waiting);
    abort();
}

static void go_on() {
    Thread* next = pick();
    if (!next) deadlock();
    next->waits_on = nullptr;
    Thread* from = current;
    if (next == from) return;
    current = next;
    next->fiber.resume(from->fiber);
}

void yield() { go_on(); }

void wait_for_change(const unsigned* word, unsigned value, const char* what, Site site) {
    current->waits_on = word;
    current->waits_value = value;
    current->waits_in = what;
    current->site = site;
    go_on();
}

static void thread_main() {
    Fiber::entered();
    const Launch& launch = *world->launch;
    observe(&launch.before);
    launch.kernel->call(launch.arguments);
    happened(&launch.after);
    Thread& thread = *current;
    thread.done = true;
    thread_exits(thread);
    if (--world->alive == 0) {
        current = nullptr;
        world->main.resume(thread.fiber);
    }
    go_on();
    __builtin_unreachable();
}

static void run_wave(World& w, uint64_t first, uint64_t count) {
    const Launch& launch = *w.launch;
    const dim3 size = launch.block;
    const unsigned n = size.x * size.y * size.z;
    const Hidden hidden;
    while (w.blocks.size() < count) {
        w.blocks.emplace_back(new Block);
        w.threads.emplace_back();
    }
    w.ring.clear();
    for (uint64_t k = 0; k < count; k++) {
        Block& block = *w.blocks[k];
        auto& threads = w.threads[k];
        while (threads.size() < n) threads.emplace_back(new Thread);
        block.threads.clear();
        for (unsigned i = 0; i < n; i++) {
            Thread& thread = *threads[i];
            thread.block = &block;
            thread.index = dim3(i % size.x, i / size.x % size.y, i / size.x / size.y);
            thread.linear = i;
            thread.lane = i % WARP;
            thread.warp = i / WARP;
            thread.done = false;
            thread.waits_on = nullptr;
            thread.site = Site{"", 0};
            thread.copies.clear();
            thread.groups.clear();
            thread.fiber.prepare(thread_main);
            block.threads.push_back(&thread);
            w.ring.push_back(&thread);
        }
        begin_block(block, launch, first + k);
    }
    happened(&launch.before);
    w.alive = w.ring.size();
    if (launch.schedule.order == REVERSE) std::reverse(w.ring.begin(), w.ring.end());
    if (launch.schedule.order == RANDOM)
        for (size_t i = w.ring.size(); i > 1; i--)
            std::swap(w.ring[i - 1], w.ring[next_random(w) % i]);
    w.position = 0;
    current = w.ring[0];
    current->fiber.resume(w.main);
    for (uint64_t k = 0; k < count; k++) end_block(*w.blocks[k]);
}

World::~World() {
    for (auto& block : blocks)
        if (block->shared) munmap(block->shared, SHARED_REGION_BYTES);
}

// Takes waves of blocks until none is left.
static void work(const Launch& launch, std::atomic<uint64_t>& next, unsigned worker) {
    static thread_local std::unique_ptr<World> own;
    if (!own) own.reset(new World);
    world = own.get();
    world->launch = &launch;
    world->main.adopt();
    world->random = (launch.schedule.seed * 64 + worker) * 2654435761u + 1;
    copies_land_late = launch.schedule.late != 0;
    const uint64_t total = uint64_t(launch.grid.x) * launch.grid.y * launch.grid.z;
    const uint64_t wave = std::max(1u, launch.schedule.wave);
    for (;;) {
        const uint64_t first = next.fetch_add(wave);
        if (first >= total) break;
        run_wave(*world, first, std::min(wave, total - first));
    }
    // Only now: the blocks of one launch are not ordered.
    observe(&launch.after);
}

void run(const Launch& launch) {
    install_fault_handler();
    std::atomic<uint64_t> next{0};
    if (launch.schedule.threads <= 1) return work(launch, next, 0);
    std::vector<std::thread> workers;
    for (unsigned i = 0; i < launch.schedule.threads; i++)
        workers.emplace_back([&, i] { work(launch, next, i); });
    for (std::thread& worker : workers) worker.join();
}

static Kernel*& first_kernel() {
    static Kernel* first = nullptr;
    return first;
}

Kernel::Kernel(const char* name, unsigned threads_max, void (*call)(void**), std::string signature)
    : name(name), threads_max(threads_max), signature(std::move(signature)), call(call),
      next(first_kernel()) {
    first_kernel() = this;
}

}  // namespace emulator

// What ../src/lib.rs calls.
using emulator::Kernel;
extern "C" const Kernel* emulator_kernel_after(const Kernel* kernel) {
    return kernel ? kernel->next : emulator::first_kernel();
}
extern "C" const char* emulator_kernel_name(const Kernel* kernel) { return kernel->name; }
extern "C" const char* emulator_kernel_signature(const Kernel* kernel) {
    return kernel->signature.c_str();
}
extern "C" uint32_t emulator_kernel_threads_max(const Kernel* kernel) {
    return kernel->threads_max;
}
extern "C" void emulator_launch(const Kernel* kernel, const uint32_t* grid, const uint32_t* block,
                                size_t shared_bytes, const emulator::Schedule* schedule,
                                void** arguments) {
    const emulator::Launch launch{kernel, dim3(grid[0], grid[1], grid[2]),
                                  dim3(block[0], block[1], block[2]), shared_bytes, *schedule,
                                  arguments};
    emulator::run(launch);
    emulator::check_memory(launch);
}
