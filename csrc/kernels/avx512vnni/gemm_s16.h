// 16-bit products with VNNI: vpdpwssd adds two into each 32-bit sum.
#pragma once

#include "kernels/avx512vnni/f32x16.h"
#include "kernels/kernels.h"

namespace agnews_fast {
namespace {

constexpr std::int64_t kPanelsS16 = 4;  // 6 rows x 4 panels: 24 sums in 32 registers

// In assembly because g++ 12 keeps copies of the sums otherwise, which no longer fit the 32 registers and spill.
inline __attribute__((always_inline)) void multiply_add_s16(__m512i pairs, __m512i columns, I32x16& sum) {
  __asm__("vpdpwssd %[b], %[a], %[s]" : [s] "+v"(sum.lanes) : [a] "v"(pairs), [b] "v"(columns));
}

template <int R, int P>
inline __attribute__((always_inline)) void products_s16(const std::int16_t* a, std::int64_t a_stride,
                                                        const std::int16_t* b, std::int64_t pairs,
                                                        I32x16 (&sum)[R][P]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) sum[r][p] = I32x16::zero();
  }
  for (std::int64_t pair = 0; pair < pairs; ++pair, b += 2 * kPanel) {
    __m512i columns[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) columns[p] = _mm512_load_si512(b + p * 2 * kPanel * pairs);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      std::int32_t two;
      std::memcpy(&two, a + r * a_stride + 2 * pair, sizeof two);
      const __m512i row = _mm512_set1_epi32(two);
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) multiply_add_s16(row, columns[p], sum[r][p]);
    }
  }
}

}  // namespace
}  // namespace agnews_fast
