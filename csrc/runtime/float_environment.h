#pragma once

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace agnews_fast {

// Rounding to nearest with denormals kept, while it lives: a caller may have changed the thread's mode (torch's
// set_flush_denormal does), and the same bits are promised all the same.
class FloatEnvironment {
 public:
#if defined(__x86_64__)
  FloatEnvironment() : saved_(_mm_getcsr()) { _mm_setcsr(kDefault); }
  ~FloatEnvironment() { _mm_setcsr(saved_); }

 private:
  static constexpr unsigned kDefault = 0x1f80;  // all exceptions masked, round to nearest, no flushing
  unsigned saved_;
#else
  FloatEnvironment() = default;
#endif

 public:
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;
};

}  // namespace agnews_fast
