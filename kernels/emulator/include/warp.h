// Collectives of a warp: shuffles, votes, __syncwarp. All lanes of the mask must reach the same
// call with the same mask; the lane that arrives last computes for all.
#pragma once

#include "block.h"

namespace emulator {

// out[lane] = in[source(lane)]; `source` gives a lane of the warp.
template <class T, class Source>
T exchange(unsigned mask, const char* name, T value, Site site, Source source) {
    struct Slot {
        T in, out;
        int argument;
    } slot{value, value, 0};
    warp_collective(mask, name, &slot, site, [&](void** slots, unsigned mask) {
        for (int lane = 0; lane < int(WARP); lane++) {
            if (!(mask >> lane & 1)) continue;
            const int from = source(lane);
            if (!(mask >> from & 1))
                fail(site, "%s: lane %d reads lane %d, which is not in the mask", name, lane, from);
            static_cast<Slot*>(slots[lane])->out = static_cast<Slot*>(slots[from])->in;
        }
    });
    return slot.out;
}

template <class Combine> unsigned vote(unsigned mask, const char* name, int predicate, Site site,
                                       Combine combine) {
    struct Slot {
        int predicate;
        unsigned result;
    } slot{predicate, 0};
    warp_collective(mask, name, &slot, site, [&](void** slots, unsigned mask) {
        unsigned ballot = 0;
        for (unsigned lane = 0; lane < WARP; lane++)
            if (mask >> lane & 1 && static_cast<Slot*>(slots[lane])->predicate)
                ballot |= 1u << lane;
        for (unsigned lane = 0; lane < WARP; lane++)
            if (mask >> lane & 1) static_cast<Slot*>(slots[lane])->result = combine(ballot, mask);
    });
    return slot.result;
}

}  // namespace emulator

// Alone among the collectives it orders accesses to memory.
inline void __syncwarp(unsigned mask = ~0u, emulator::Site site = EMULATOR_HERE) {
    const void* warp = &emulator::current->block->warps[emulator::current->warp];
    emulator::happened(warp);
    emulator::warp_collective(mask, "__syncwarp", nullptr, site, [](void**, unsigned) {});
    emulator::observe(warp);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32,
                  emulator::Site site = EMULATOR_HERE) {
    return emulator::exchange(mask, "__shfl_xor_sync", value, site, [=](int lane) {
        const int from = lane ^ lanes;
        return from / width == lane / width ? from : lane;
    });
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = 32,
                   emulator::Site site = EMULATOR_HERE) {
    return emulator::exchange(mask, "__shfl_down_sync", value, site, [=](int lane) {
        const int from = lane + int(lanes);
        return from / width == lane / width ? from : lane;
    });
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = 32,
                 emulator::Site site = EMULATOR_HERE) {
    return emulator::exchange(mask, "__shfl_up_sync", value, site, [=](int lane) {
        const int from = lane - int(lanes);
        return from >= 0 && from / width == lane / width ? from : lane;
    });
}

// Each lane names the lane it reads.
template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32,
              emulator::Site site = EMULATOR_HERE) {
    struct Slot {
        T in, out;
        int from;
    } slot{value, value, from};
    emulator::warp_collective(mask, "__shfl_sync", &slot, site, [&](void** slots, unsigned mask) {
        for (int lane = 0; lane < 32; lane++) {
            if (!(mask >> lane & 1)) continue;
            Slot& own = *static_cast<Slot*>(slots[lane]);
            const int source = lane / width * width + (own.from & (width - 1));
            if (!(mask >> source & 1))
                emulator::fail(site, "__shfl_sync: lane %d reads lane %d, which is not in the mask",
                               lane, source);
            own.out = static_cast<Slot*>(slots[source])->in;
        }
    });
    return slot.out;
}

inline unsigned __ballot_sync(unsigned mask, int predicate, emulator::Site site = EMULATOR_HERE) {
    return emulator::vote(mask, "__ballot_sync", predicate, site,
                          [](unsigned ballot, unsigned) { return ballot; });
}
inline int __any_sync(unsigned mask, int predicate, emulator::Site site = EMULATOR_HERE) {
    return int(emulator::vote(mask, "__any_sync", predicate, site,
                              [](unsigned ballot, unsigned) { return unsigned(ballot != 0); }));
}
inline int __all_sync(unsigned mask, int predicate, emulator::Site site = EMULATOR_HERE) {
    const auto all = [](unsigned ballot, unsigned mask) { return unsigned(ballot == mask); };
    return int(emulator::vote(mask, "__all_sync", predicate, site, all));
}
