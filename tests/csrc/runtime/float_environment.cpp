#include "runtime/float_environment.h"

#include "check.h"

namespace agnews_fast {
namespace {

#if defined(__x86_64__)
constexpr unsigned kFlushToZero = 0x8000, kDenormalsAreZero = 0x0040, kRoundDown = 0x2000;

float half(float x) {
  volatile float y = x;  // computed at run time, in the mode of the moment
  return y * 0.5f;
}

TEST(float_environment_sets_the_default_and_gives_the_callers_back) {
  const unsigned before = _mm_getcsr();
  for (const unsigned mode : {before, before | kFlushToZero | kDenormalsAreZero, before | kRoundDown,
                              before | kFlushToZero | kRoundDown | 0x3f}) {
    _mm_setcsr(mode);
    unsigned inside = 0, nested = 0;
    float denormal = 0.0f;
    {
      const FloatEnvironment environment;
      inside = _mm_getcsr();
      denormal = half(1e-40f);
      {
        const FloatEnvironment again;
        nested = _mm_getcsr() & ~0x3fu;
      }
    }
    const unsigned after = _mm_getcsr();
    _mm_setcsr(before);
    CHECK_EQ(inside, 0x1f80u);
    CHECK_EQ(nested, 0x1f80u);
    CHECK(denormal > 0.0f);
    CHECK_EQ(after, mode);
  }
}
#else
TEST(float_environment_can_be_made) { const FloatEnvironment environment; }
#endif

}  // namespace
}  // namespace agnews_fast
