// 16-bit products with AVX2: vpmaddwd adds two into 32 bits, vpaddd adds those up.
#pragma once

#include "kernels/avx2/f32x16.h"
#include "kernels/kernels.h"

namespace agnews_fast {
namespace {

constexpr std::int64_t kPanelsS16 = 1;  // 6 rows x 1 panel: 12 sums in 16 registers

// One row's pair of k against 2 x 16 numbers. In assembly for the same reason as multiply_add in avx2.cpp.
inline __attribute__((always_inline)) void multiply_add_s16(const std::int16_t* pair, __m256i low, __m256i high,
                                                            I32x16& sum) {
  __m256i a, product;
  __asm__(
      "vpbroadcastd %[m], %[a]\n\t"
      "vpmaddwd %[b0], %[a], %[p]\n\t"
      "vpmaddwd %[b1], %[a], %[a]\n\t"
      "vpaddd %[p], %[s0], %[s0]\n\t"
      "vpaddd %[a], %[s1], %[s1]"
      : [s0] "+x"(sum.low), [s1] "+x"(sum.high), [a] "=&x"(a), [p] "=&x"(product)
      : [m] "m"(*reinterpret_cast<const std::int16_t (*)[2]>(pair)), [b0] "x"(low), [b1] "x"(high));
}

template <int R, int P>
inline __attribute__((always_inline)) void products_s16(const std::int16_t* a, std::int64_t a_stride,
                                                        const std::int16_t* b, std::int64_t pairs,
                                                        I32x16 (&sum)[R][P]) {
  static_assert(P == 1);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) sum[r][0] = I32x16::zero();
  for (std::int64_t pair = 0; pair < pairs; ++pair, b += 2 * kPanel) {
    const __m256i* columns = reinterpret_cast<const __m256i*>(b);
    const __m256i low = _mm256_load_si256(columns), high = _mm256_load_si256(columns + 1);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) multiply_add_s16(a + r * a_stride + 2 * pair, low, high, sum[r][0]);
  }
}

}  // namespace
}  // namespace agnews_fast
