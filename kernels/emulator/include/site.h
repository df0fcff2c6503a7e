// Where in a kernel something happened, and the one way out of a kernel that broke a rule.
#pragma once

namespace emulator {

struct Site {
    const char* file;
    int line;

    // As a default argument, the place of the call.
    static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        return Site{file, line};
    }
};

// Prints kernel, block, thread, site and the message to stderr and aborts the process.
[[noreturn]] void fail(Site site, const char* format, ...) __attribute__((format(printf, 2, 3)));

// Prints to stderr.
void say(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace emulator

#define EMULATOR_HERE ::emulator::Site::here()

// Device functions that synchronise take the place of their call along: `float f(float x SITE)`
// calls `g(x PASS_SITE)`, so that a report names the kernel's line. Empty under nvcc.
#define SITE , ::emulator::Site site = EMULATOR_HERE
#define SITE_ONLY ::emulator::Site site = EMULATOR_HERE
#define PASS_SITE , site
#define PASS_SITE_ONLY site
