// Stacks and switches between them.

#include "fiber.h"

#include <pthread.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

namespace emulator {

constexpr size_t PAGE = 4096;

#ifndef EMULATOR_UCONTEXT
// Pushes the registers that a call preserves (System V ABI), stores the stack pointer, loads the
// other one and pops its registers. The return address on that stack is where it goes on.
extern "C" void emulator_switch(void** save, void* load);
asm(R"(
    .text
    .globl emulator_switch
    .type emulator_switch, @function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size emulator_switch, . - emulator_switch
    .section .note.GNU-stack, "", @progbits
    .text
)");
constexpr int SAVED_REGISTERS = 6;
#endif

Fiber::~Fiber() {
    if (!stack) return;
#if defined(EMULATOR_TSAN)
    __tsan_destroy_fiber(tsan);
#endif
    munmap(stack, STACK_BYTES);
}

void Fiber::prepare(void (*entry)()) {
    if (!stack) {
        void* memory = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        // The lowest page stays out of reach, so that an overflow faults.
        if (memory == MAP_FAILED || mprotect(memory, PAGE, PROT_NONE) != 0) {
            perror("emulator: no memory for the stack of a thread");
            abort();
        }
        stack = static_cast<char*>(memory);
#if defined(EMULATOR_TSAN)
        tsan = __tsan_create_fiber(0);
#endif
    }
#if defined(EMULATOR_ASAN)
    bottom = stack;
    bytes = STACK_BYTES;
#endif
    permit(stack + PAGE, STACK_BYTES - PAGE);  // what frames of an earlier thread left
#ifdef EMULATOR_UCONTEXT
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = STACK_BYTES;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
#else
    // From the top: a null return address, which keeps the stack aligned as after a call, the
    // entry, to which the switch returns, and room for the registers it pops.
    void** top = reinterpret_cast<void**>(stack + STACK_BYTES) - 1;
    *top = nullptr;
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < SAVED_REGISTERS; i++) *--top = nullptr;
    stack_pointer = top;
#endif
}

void Fiber::adopt() {
#if defined(EMULATOR_TSAN)
    tsan = __tsan_get_current_fiber();
#endif
#if defined(EMULATOR_ASAN)
    pthread_attr_t attributes;
    void* first = nullptr;
    if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
        pthread_attr_getstack(&attributes, &first, &bytes);
        pthread_attr_destroy(&attributes);
    }
    bottom = first;
#endif
}

void Fiber::entered() {
#if defined(EMULATOR_ASAN)
    __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

void Fiber::resume(Fiber& from) {
#if defined(EMULATOR_TSAN)
    constexpr unsigned NO_SYNC = 1;
    __tsan_switch_to_fiber(tsan, NO_SYNC);
#endif
#if defined(EMULATOR_ASAN)
    __sanitizer_start_switch_fiber(&from.asan, bottom, bytes);
#endif
#ifdef EMULATOR_UCONTEXT
    swapcontext(&from.context, &context);
#else
    emulator_switch(&from.stack_pointer, stack_pointer);
#endif
    // `from` runs again.
#if defined(EMULATOR_ASAN)
    __sanitizer_finish_switch_fiber(from.asan, nullptr, nullptr);
#endif
}

}  // namespace emulator
