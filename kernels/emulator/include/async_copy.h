// cp.async: 16 bytes from global to shared memory. A schedule lands each copy either at once or
// when its group is waited for, the earliest and the latest moment that PTX allows; until a late
// one lands its destination holds poison.
#pragma once

#include <cstring>

#include "block.h"

inline uint32_t shared_address(const void* p, emulator::Site site = EMULATOR_HERE) {
    return emulator::shared_offset(p, site);
}

namespace emulator {

inline void perform(const AsyncCopy& copy) {
    if (copy.from)
        memcpy(copy.to, copy.from, 16);
    else
        memset(copy.to, 0, 16);
}

inline void wait_copies(size_t groups_in_flight) {
    auto& groups = current->groups;
    while (groups.size() > groups_in_flight) {
        for (const AsyncCopy& copy : groups.front()) perform(copy);
        groups.pop_front();
    }
}

}  // namespace emulator

// Zero fill where !valid; then `global` is not read, but must still be aligned.
inline void copy_async_16(uint32_t shared, const void* global, bool valid = true,
                          emulator::Site site = EMULATOR_HERE) {
    char* to = emulator::shared_memory(shared, 16, "the destination of cp.async", site);
    emulator::check_aligned(global, 16, "the source of cp.async", site);
    const emulator::AsyncCopy copy{to, valid ? global : nullptr};
    if (!emulator::copies_land_late) return emulator::perform(copy);
    memset(to, emulator::POISON, 16);
    emulator::current->copies.push_back(copy);
}

inline void copy_async_commit() {
    emulator::Thread& thread = *emulator::current;
    thread.groups.push_back(std::move(thread.copies));
    thread.copies.clear();
}

// Waits until at most `in_flight` of the latest groups of this thread are incomplete.
template <int in_flight> void copy_async_wait() { emulator::wait_copies(in_flight); }
