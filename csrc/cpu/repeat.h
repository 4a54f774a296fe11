// Loops that the compiler cannot keep: every pass knows its number at compile time.
#pragma once

#include <utility>

#define ALWAYS_INLINE inline __attribute__((always_inline))
#define ALWAYS_INLINE_LAMBDA __attribute__((always_inline))

namespace {

template <int N>
using Number = std::integral_constant<int, N>;

template <class F, int... I>
ALWAYS_INLINE void call_each(std::integer_sequence<int, I...>, F&& f) {
  (f(Number<I>{}), ...);
}

// f(0), f(1), ... f(N - 1), each argument a constant. So arrays that f indexes can lie in registers.
template <int N, class F>
ALWAYS_INLINE void repeat(F&& f) {
  call_each(std::make_integer_sequence<int, N>{}, f);
}

}  // namespace
