#include "kernels/cpu_features.h"

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace agnews_fast {

#if defined(__x86_64__)
namespace {

// Intel SDM vol. 1, 14.3 and 15.2: an instruction set may be used when CPUID names it AND the operating system saves
// its registers (OSXSAVE, then the bits of XCR0).
struct Features {
  bool avx2 = false;
  bool avx512vnni = false;

  Features() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return;
    const bool fma = (c & bit_FMA) != 0;
    if ((c & bit_OSXSAVE) == 0) return;
    std::uint32_t saved = 0, upper = 0;
    __asm__("xgetbv" : "=a"(saved), "=d"(upper) : "c"(0));
    constexpr std::uint32_t kYmm = 0x6, kZmm = 0xe6;  // SSE, AVX; and opmask, ZMM0-15 upper halves, ZMM16-31
    if ((saved & kYmm) != kYmm || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
    avx2 = fma && (b & bit_AVX2) != 0;
    constexpr unsigned kAvx512 = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
    avx512vnni = avx2 && (saved & kZmm) == kZmm && (b & kAvx512) == kAvx512 && (c & bit_AVX512VNNI) != 0;
  }
};

const Features& features() {
  static const Features detected;
  return detected;
}

}  // namespace

bool cpu_has_avx2() { return features().avx2; }
bool cpu_has_avx512vnni() { return features().avx512vnni; }
#else
bool cpu_has_avx2() { return false; }
bool cpu_has_avx512vnni() { return false; }
#endif

}  // namespace agnews_fast
