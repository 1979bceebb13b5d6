// The inner steps of the AVX2 product: rows of activations against a panel, in 16-bit sums.
#pragma once

#include "kernels/avx2/f32x16.h"
#include "kernels/kernels.h"

namespace agnews_fast {
namespace {

// One row's 4 activations against 4 x 16 weights, added to (First: set as) the row's two 16-bit sums. In assembly because
// g++ 12 reorders the intrinsics until the 12 sums no longer fit the 16 registers and spill.
template <bool First>
inline __attribute__((always_inline)) void multiply_add(const std::uint8_t* activations, __m256i weights0,
                                                        __m256i weights1, __m256i& sum0, __m256i& sum1) {
  __m256i a, product;
  if constexpr (First) {
    __asm__(
        "vpbroadcastd %[m], %[a]\n\t"
        "vpmaddubsw %[w0], %[a], %[s0]\n\t"
        "vpmaddubsw %[w1], %[a], %[s1]"
        : [s0] "=&x"(sum0), [s1] "=&x"(sum1), [a] "=&x"(a)
        : [m] "m"(*reinterpret_cast<const std::uint8_t (*)[kGroup]>(activations)), [w0] "x"(weights0),
          [w1] "x"(weights1));
    static_cast<void>(product);
  } else {
    __asm__(
        "vpbroadcastd %[m], %[a]\n\t"
        "vpmaddubsw %[w0], %[a], %[p]\n\t"
        "vpmaddubsw %[w1], %[a], %[a]\n\t"
        "vpaddw %[p], %[s0], %[s0]\n\t"
        "vpaddw %[a], %[s1], %[s1]"
        : [s0] "+x"(sum0), [s1] "+x"(sum1), [a] "=&x"(a), [p] "=&x"(product)
        : [m] "m"(*reinterpret_cast<const std::uint8_t (*)[kGroup]>(activations)), [w0] "x"(weights0),
          [w1] "x"(weights1));
  }
}

// Adds a row's 16-bit sums to its 32-bit totals. In assembly because g++ keeps the totals twice, in two places of the
// stack, and stores them in both.
inline __attribute__((always_inline)) void widen_add(__m256i sum, __m256i ones, std::int32_t* total) {
  __asm__(
      "vpmaddwd %[ones], %[s], %[s]\n\t"
      "vpaddd %[t], %[s], %[s]\n\t"
      "vmovdqa %[s], %[t]"
      : [s] "+x"(sum), [t] "+m"(*reinterpret_cast<__m256i*>(total))
      : [ones] "x"(ones));
}

// Some groups of k of R rows against a panel, added to (First: set as) the rows' 16-bit sums of 2 x 8 columns. Long: as
// a part of a long window.
template <int R, int Groups, bool First, bool Long>
inline __attribute__((always_inline)) void multiply_add_groups(const std::uint8_t* activations,
                                                               const std::int8_t* weights, __m256i (&sum)[R][2]) {
#pragma GCC unroll 8
  for (int g = 0; g < Groups; ++g) {
    const __m256i* w = reinterpret_cast<const __m256i*>(weights + g * kGroup * kPanel);
    const __m256i weights0 = _mm256_load_si256(w), weights1 = _mm256_load_si256(w + 1);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const std::uint8_t* u = activations + (g * R + r) * kGroup;
      if (First && g == 0) {
        multiply_add<true>(u, weights0, weights1, sum[r][0], sum[r][1]);
      } else {
        multiply_add<false>(u, weights0, weights1, sum[r][0], sum[r][1]);
      }
    }
  }
}

// The same for full tiles in long windows, in one piece of assembly: between pieces g++ 12 moves the sums about. (Short
// windows are 1 % faster as above.)
// clang-format off
#define AGNEWS_FAST_SET(r)                    \
  "vpmaddubsw %[w0], %[a], %[s" #r "0]\n\t"   \
  "vpmaddubsw %[w1], %[a], %[s" #r "1]\n\t"
#define AGNEWS_FAST_ADD(r)                    \
  "vpmaddubsw %[w0], %[a], %[p]\n\t"          \
  "vpmaddubsw %[w1], %[a], %[a]\n\t"          \
  "vpaddw %[p], %[s" #r "0], %[s" #r "0]\n\t" \
  "vpaddw %[a], %[s" #r "1], %[s" #r "1]\n\t"
#define AGNEWS_FAST_ROW(step, g, r)                   \
  "vpbroadcastd 24*" #g "+4*" #r "(%[u]), %[a]\n\t"   \
  step(r)
#define AGNEWS_FAST_GROUP(step, g)                    \
  "vmovdqa 64*" #g "(%[w]), %[w0]\n\t"                \
  "vmovdqa 64*" #g "+32(%[w]), %[w1]\n\t"             \
  AGNEWS_FAST_ROW(step, g, 0) AGNEWS_FAST_ROW(step, g, 1) AGNEWS_FAST_ROW(step, g, 2) \
  AGNEWS_FAST_ROW(step, g, 3) AGNEWS_FAST_ROW(step, g, 4) AGNEWS_FAST_ROW(step, g, 5)
#define AGNEWS_FAST_BLOCK(first, constraint)                                                            \
  __m256i w0, w1, a, p;                                                                                 \
  __asm__(AGNEWS_FAST_GROUP(first, 0)           AGNEWS_FAST_GROUP(AGNEWS_FAST_ADD, 1)                   \
          AGNEWS_FAST_GROUP(AGNEWS_FAST_ADD, 2) AGNEWS_FAST_GROUP(AGNEWS_FAST_ADD, 3)                   \
          AGNEWS_FAST_GROUP(AGNEWS_FAST_ADD, 4) AGNEWS_FAST_GROUP(AGNEWS_FAST_ADD, 5)                   \
          AGNEWS_FAST_GROUP(AGNEWS_FAST_ADD, 6) AGNEWS_FAST_GROUP(AGNEWS_FAST_ADD, 7)                   \
          : [s00] constraint(sum[0][0]), [s01] constraint(sum[0][1]), [s10] constraint(sum[1][0]),      \
            [s11] constraint(sum[1][1]), [s20] constraint(sum[2][0]), [s21] constraint(sum[2][1]),      \
            [s30] constraint(sum[3][0]), [s31] constraint(sum[3][1]), [s40] constraint(sum[4][0]),      \
            [s41] constraint(sum[4][1]), [s50] constraint(sum[5][0]), [s51] constraint(sum[5][1]),      \
            [w0] "=&x"(w0), [w1] "=&x"(w1), [a] "=&x"(a), [p] "=&x"(p)                                  \
          : [u] "r"(activations), [w] "r"(weights)                                                      \
          : "memory")
// clang-format on

static_assert(kRowTile == 6 && kGroup == 4 && kPanel == 16 && kMaxDepth == 8);

template <>
inline __attribute__((always_inline)) void multiply_add_groups<6, 8, true, true>(const std::uint8_t* activations,
                                                                                 const std::int8_t* weights,
                                                                                 __m256i (&sum)[6][2]) {
  AGNEWS_FAST_BLOCK(AGNEWS_FAST_SET, "=&x");
}

template <>
inline __attribute__((always_inline)) void multiply_add_groups<6, 8, false, true>(const std::uint8_t* activations,
                                                                                  const std::int8_t* weights,
                                                                                  __m256i (&sum)[6][2]) {
  AGNEWS_FAST_BLOCK(AGNEWS_FAST_ADD, "+&x");
}

#undef AGNEWS_FAST_BLOCK
#undef AGNEWS_FAST_GROUP
#undef AGNEWS_FAST_ROW
#undef AGNEWS_FAST_ADD
#undef AGNEWS_FAST_SET

}  // namespace
}  // namespace agnews_fast
