// What a panel of weights adds up to, with vectors of 256 bits on every instruction set: memory takes longer.
#pragma once

#include "kernels/simd/rows.h"

namespace agnews_fast {
namespace {

void panel_sums(const std::int8_t* panel, std::int64_t k, int depth, PanelSums& sums) {
  const __m256i zero = _mm256_setzero_si256();
  const __m256i ones8 = _mm256_set1_epi8(1), ones16 = _mm256_set1_epi16(1);
  __m256i lowest = zero, largest = zero;                          // bytes; 16-bit lanes
  __m256i all[2] = {zero, zero}, all_positive[2] = {zero, zero};  // by column, 8 each
  for (std::int64_t group = 0; group < k / kGroup; group += depth) {
    __m256i sum[2] = {zero, zero}, positive[2] = {zero, zero};  // 16-bit lanes of this window
    for (int d = 0; d < depth; ++d, panel += kPanel * kGroup) {
      for (int half = 0; half < 2; ++half) {
        const __m256i w = _mm256_load_si256(reinterpret_cast<const __m256i*>(panel) + half);
        lowest = _mm256_min_epi8(lowest, w);
        sum[half] = _mm256_add_epi16(sum[half], _mm256_maddubs_epi16(ones8, w));
        positive[half] = _mm256_add_epi16(positive[half], _mm256_maddubs_epi16(ones8, _mm256_max_epi8(w, zero)));
      }
    }
    for (int half = 0; half < 2; ++half) {
      const __m256i negative = _mm256_sub_epi16(positive[half], sum[half]);
      largest = _mm256_max_epi16(largest, _mm256_max_epi16(positive[half], negative));
      all[half] = _mm256_add_epi32(all[half], _mm256_madd_epi16(sum[half], ones16));
      all_positive[half] = _mm256_add_epi32(all_positive[half], _mm256_madd_epi16(positive[half], ones16));
    }
  }
  for (int half = 0; half < 2; ++half) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums.sum) + half, all[half]);
    const __m256i magnitude = _mm256_sub_epi32(_mm256_add_epi32(all_positive[half], all_positive[half]), all[half]);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums.magnitude) + half, magnitude);
  }
  std::int16_t windows[16];
  std::int8_t weights[32];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(windows), largest);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights), lowest);
  sums.largest_window = 0;
  sums.lowest = 0;
  for (const std::int16_t x : windows) sums.largest_window = x > sums.largest_window ? x : sums.largest_window;
  for (const std::int8_t x : weights) sums.lowest = x < sums.lowest ? x : sums.lowest;
}

std::int32_t sum_s8(const std::int8_t* x, std::int64_t n) {
  // The instruction adds unsigned bytes: 128 more than the number each.
  const __m128i sign = _mm_set1_epi8(-128);
  __m128i sum = _mm_setzero_si128();
  for (std::int64_t i = 0; i < n; i += 16) {
    const __m128i bytes = _mm_xor_si128(_mm_load_si128(reinterpret_cast<const __m128i*>(x + i)), sign);
    sum = _mm_add_epi64(sum, _mm_sad_epu8(bytes, _mm_setzero_si128()));
  }
  const std::int64_t total = _mm_cvtsi128_si64(sum) + _mm_cvtsi128_si64(_mm_unpackhi_epi64(sum, sum));
  return static_cast<std::int32_t>(total - 128 * n);
}

}  // namespace
}  // namespace agnews_fast
