#pragma once

#include <cstdio>

#include "check.h"
#include "kernels/registry.h"

namespace agnews_fast {

// Runs a test on every instruction set of this machine and names it; having none to run on is a failure.
inline void for_each_isa(const char* test, void (*run)(const Kernels&)) {
  int ran = 0;
  for (const Kernels* kernels : available_kernels()) {
    const check::Scope scope("instruction set ", kernels->name);
    run(*kernels);
    std::printf("       %s on %s\n", test, kernels->name);
    ++ran;
  }
  CHECK(ran > 0);
}

// What PackedRows::window_norm bounds in one row of levels (k), and PackedWeights::window_norm in one column, squared: the
// larger sum of squares, of the first and of the second pair of every group.
template <typename Level>
double long_window_squares(std::int64_t window, const Level& level) {
  const std::int64_t length = kGroup * kLongDepth;
  double squares[2] = {};
  for (std::int64_t at = window * length; at < (window + 1) * length; ++at) {
    squares[at / 2 % 2] += static_cast<double>(level(at)) * level(at);
  }
  return squares[0] > squares[1] ? squares[0] : squares[1];
}

// The specification that every other instruction set must equal bit for bit.
inline const Kernels& scalar_kernels() { return select_kernels("scalar"); }

}  // namespace agnews_fast

// TEST_EACH_ISA(name) { ... kernels ... }
#define TEST_EACH_ISA(name)                      \
  static void name##_on(const Kernels& kernels); \
  TEST(name) { for_each_isa(#name, name##_on); } \
  static void name##_on(const Kernels& kernels)
