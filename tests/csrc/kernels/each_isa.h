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

// The specification that every other instruction set must equal bit for bit.
inline const Kernels& scalar_kernels() { return select_kernels("scalar"); }

}  // namespace agnews_fast

// TEST_EACH_ISA(name) { ... kernels ... }
#define TEST_EACH_ISA(name)                      \
  static void name##_on(const Kernels& kernels); \
  TEST(name) { for_each_isa(#name, name##_on); } \
  static void name##_on(const Kernels& kernels)
