// A launch, and what an OS thread that runs blocks of it keeps.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "block.h"
#include "registry.h"

namespace emulator {

enum Order : uint32_t { FORWARD = 0, REVERSE = 1, RANDOM = 2 };

// Mirrored by `Schedule` in ../src/lib.rs.
struct Schedule {
    uint32_t order;
    uint32_t seed;
    uint32_t late;     // cp.async lands when waited for, not at once
    uint32_t wave;     // blocks in flight on one OS thread
    uint32_t threads;  // OS threads
};

struct Launch {
    const Kernel* kernel;
    dim3 grid, block;
    size_t shared_bytes;
    Schedule schedule;
    void** arguments;
    char before = 0, after = 0;  // what sanitizers know of the host's order with the threads
};

struct World {
    const Launch* launch = nullptr;
    std::vector<std::unique_ptr<Block>> blocks;           // kept between waves
    std::vector<std::vector<std::unique_ptr<Thread>>> threads;  // of each block, likewise
    std::vector<Thread*> ring;                            // the threads of the wave in their order
    size_t position = 0;                                  // in the ring, of the running thread
    size_t alive = 0;
    uint32_t random = 1;
    Fiber main;  // of the OS thread itself
    ~World();
};

extern __thread World* world;

void begin_block(Block& block, const Launch& launch, uint64_t index);
// Checks what must hold when all threads of a block are done.
void end_block(Block& block);
void thread_exits(Thread& thread);
// Fails where the launch wrote just outside the memory of an argument.
void check_memory(const Launch& launch);

}  // namespace emulator
