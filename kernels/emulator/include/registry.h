// The table of kernels of the program: KERNEL adds one, the launcher finds it by name.
#pragma once

#include <cstddef>
#include <string>
#include <type_traits>
#include <utility>

#include "numbers.h"

namespace emulator {

// How a parameter is described to the launcher: two characters, what it is and of what type.
// 'c' pointer to const, 'm' pointer to mutable, 'v' value; f32 'f', bf16 'b', f16 'h', 4-byte
// integer 'i', 8-byte integer 'l', 2-byte 's', 1-byte 'c', any other '?'.
template <class T> constexpr char type_code() {
    using U = std::remove_cv_t<T>;
    if (std::is_same<U, float>::value) return 'f';
    if (std::is_same<U, bf16>::value) return 'b';
    if (std::is_same<U, f16>::value) return 'h';
    if (!std::is_integral<U>::value) return '?';
    return sizeof(U) == 4 ? 'i' : sizeof(U) == 8 ? 'l' : sizeof(U) == 2 ? 's' : 'c';
}
template <class T> void describe(std::string& signature) {
    if constexpr (std::is_pointer<T>::value) {
        using Target = std::remove_pointer_t<T>;
        signature += std::is_const<Target>::value ? 'c' : 'm';
        if constexpr (std::is_void<std::remove_cv_t<Target>>::value)
            signature += '?';
        else
            signature += type_code<Target>();
    } else {
        static_assert(sizeof(T) == 4 || sizeof(T) == 8, "kernel values have 4 or 8 bytes");
        signature += 'v';
        signature += type_code<T>();
    }
}

struct Kernel {
    const char* name;
    unsigned threads_max;
    std::string signature;
    void (*call)(void** arguments);  // one pointer for each argument, as for cuLaunchKernel
    Kernel* next;

    Kernel(const char* name, unsigned threads_max, void (*call)(void**), std::string signature);
};

template <class... A> std::string signature_of(void (*)(A...)) {
    std::string signature;
    (describe<std::remove_cv_t<A>>(signature), ...);
    return signature;
}
template <class... A, size_t... I>
void call_packed(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_cv_t<A>*>(arguments[I])...);
}
template <class... A> void call_packed(void (*kernel)(A...), void** arguments) {
    call_packed(kernel, arguments, std::index_sequence_for<A...>{});
}

}  // namespace emulator
