// The 16-bit integer attention but for its products, written once over F32x16 (see rows.h) and I32x16.
//
// Of F32x16 it needs one more: times_pow2(x, n + kRoundingShift), x * 2^n of normal numbers, by adding n to the exponent.
//
// I32x16 offers, besides what rows.h needs: load, store; + -; first_or(n, other) (the value in lanes below n, other
// above); sum (across lanes); nearest (of floats) and to_float; magnitude_bits (the bits of |x|, whose order is that of
// the magnitudes, infinity above them and NaN above all); to_s16 (saturated; lanes 0-7 and 8-15).
#pragma once

#include "kernels/simd/rows.h"

namespace agnews_fast {
namespace {

inline void store_s16(__m128i values, std::int16_t* p) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), values); }

// Sixteen values of a row as 16-bit integers.
struct S16x16 {
  __m128i low, high;
};

// Two rows: column c of both is one 32-bit lane.
inline void store_row_pair(const S16x16 (&rows)[2], std::int16_t* p) {
  store_s16(_mm_unpacklo_epi16(rows[0].low, rows[1].low), p);
  store_s16(_mm_unpackhi_epi16(rows[0].low, rows[1].low), p + 8);
  store_s16(_mm_unpacklo_epi16(rows[0].high, rows[1].high), p + 16);
  store_s16(_mm_unpackhi_epi16(rows[0].high, rows[1].high), p + 24);
}

// Four rows, transposed by pairs of columns: pair i of the four is at p + 32 * i, a row's 32-bit lane beside the next's.
inline void store_column_pairs(const S16x16 (&rows)[4], std::int16_t* p) {
  const auto store = [](__m128i a, __m128i b, __m128i c, __m128i d, std::int16_t* to) {
    const __m128i low_ab = _mm_unpacklo_epi32(a, b), high_ab = _mm_unpackhi_epi32(a, b);
    const __m128i low_cd = _mm_unpacklo_epi32(c, d), high_cd = _mm_unpackhi_epi32(c, d);
    store_s16(_mm_unpacklo_epi64(low_ab, low_cd), to);
    store_s16(_mm_unpackhi_epi64(low_ab, low_cd), to + 2 * kPanel);
    store_s16(_mm_unpacklo_epi64(high_ab, high_cd), to + 4 * kPanel);
    store_s16(_mm_unpackhi_epi64(high_ab, high_cd), to + 6 * kPanel);
  };
  store(rows[0].low, rows[1].low, rows[2].low, rows[3].low, p);
  store(rows[0].high, rows[1].high, rows[2].high, rows[3].high, p + 8 * kPanel);
}

float quantize_s16(const float* x, std::int64_t stride, std::int64_t rows, std::int64_t columns, int levels,
                   Operand16 operand, std::int16_t* out) {
  I32x16 bits = I32x16::zero();
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < columns; c += kLanes) {
      bits = max(bits, I32x16::magnitude_bits(x + r * stride + c));
      prefetch_l2(x + r * stride + columns + c);  // the next head's
    }
  }
  const float largest = float_of(bits.highest());
  const bool usable = largest >= kSmallestRange && largest <= kLargestRange;
  const F32x16 inverse = F32x16::broadcast(usable ? static_cast<float>(levels) / largest : 0.0f);
  // Rows past the end are zeros, and so is all that has no scale.
  const std::int64_t filled = usable ? rows : 0;
  const auto values = [&](std::int64_t r, std::int64_t c) {
    S16x16 v = {_mm_setzero_si128(), _mm_setzero_si128()};
    if (r < filled) I32x16::nearest(F32x16::load(x + r * stride + c) * inverse).to_s16(v.low, v.high);
    return v;
  };
  switch (operand) {
    case Operand16::kLeft:
      for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t c = 0; c < columns; c += kLanes) {
          const S16x16 v = values(r, c);
          store_s16(v.low, out + r * columns + c);
          store_s16(v.high, out + r * columns + c + 8);
        }
      }
      break;
    case Operand16::kRight: {
      const std::int64_t pairs = (rows + 1) / 2;
      for (std::int64_t pair = 0; pair < pairs; ++pair) {
        for (std::int64_t c = 0; c < columns; c += kPanel) {
          store_row_pair({values(2 * pair, c), values(2 * pair + 1, c)},
                         out + (c / kPanel * pairs + pair) * 2 * kPanel);
        }
      }
      break;
    }
    case Operand16::kRightTransposed: {
      const std::int64_t padded = (rows + kPanel - 1) / kPanel * kPanel;
      for (std::int64_t r = 0; r < padded; r += 4) {
        std::int16_t* to = out + r / kPanel * columns * kPanel + r % kPanel * 2;
        for (std::int64_t c = 0; c < columns; c += kLanes) {
          store_column_pairs({values(r, c), values(r + 1, c), values(r + 2, c), values(r + 3, c)}, to + c * kPanel);
        }
      }
      break;
    }
  }
  return usable ? largest / static_cast<float>(levels) : largest <= kLargestRange ? 0.0f : __builtin_nanf("");
}

// Added to a small number, it leaves no bits for a fraction: the sum is rounded to an integer n, whose low bits are last.
constexpr float kRoundingShift = 12582912.0f;  // 1.5 * 2^23

inline F32x16 exp2_nonpositive(F32x16 t) {
  t = max(t, F32x16::broadcast(kExp2Lowest));
  const F32x16 shift = F32x16::broadcast(kRoundingShift), shifted = t + shift;
  return times_pow2(horner(kExp2, t - (shifted - shift)), shifted);
}

inline std::int32_t highest_score(const std::int32_t* scores, std::int64_t n) {
  const std::int64_t whole = n / kLanes * kLanes;
  I32x16 highest = I32x16::broadcast(scores[0]);
  for (std::int64_t i = 0; i < whole; i += kLanes) highest = max(highest, I32x16::load(scores + i));
  if (whole < n) highest = max(highest, I32x16::load(scores + whole).first_or(n - whole, highest));
  return highest.highest();
}

// The exponentials take the place of the scores.
inline float* exponentials(std::int32_t* scores) { return reinterpret_cast<float*>(scores); }

// Returns the sum of the exponentials.
inline float exponentiate(std::int32_t* scores, std::int64_t n, std::int32_t highest, float base) {
  const std::int64_t whole = n / kLanes * kLanes;
  const I32x16 subtract = I32x16::broadcast(highest);
  const F32x16 factor = F32x16::broadcast(base);
  const auto exponential = [&](std::int64_t i) {
    return exp2_nonpositive((I32x16::load(scores + i) - subtract).to_float() * factor);
  };
  F32x16 sum = F32x16::zero();
  for (std::int64_t i = 0; i < whole; i += kLanes) {
    const F32x16 e = exponential(i);
    e.store(exponentials(scores) + i);
    sum = sum + e;
  }
  if (whole < n) {
    const F32x16 e = exponential(whole).first(n - whole);
    e.store(exponentials(scores) + whole);
    sum = sum + e;
  }
  return sum.sum();
}

// Returns the sum of the weights.
inline std::int32_t store_weights(const float* e, std::int64_t n, float sum, std::int16_t* weights) {
  const float wanted = kWeightSum / sum;
  const F32x16 factor = F32x16::broadcast(wanted < kLargestWeight ? wanted : kLargestWeight);
  I32x16 total = I32x16::zero();
  for (std::int64_t i = 0; i < n; i += kLanes) {
    const I32x16 weight = I32x16::nearest(F32x16::load(e + i) * factor);
    total = total + weight;
    S16x16 v;
    weight.to_s16(v.low, v.high);
    store_s16(v.low, weights + i);
    store_s16(v.high, weights + i + 8);
  }
  return total.sum();
}

void softmax_s16(std::int32_t* scores, std::int64_t stride, std::int64_t rows, std::int64_t n, float scale,
                 std::int16_t* weights, std::int64_t weights_stride, std::int32_t* total) {
  // Step by step over a few rows: what ends a row, sums across lanes and a division, then overlaps with the next row.
  constexpr std::int64_t kTogether = 6;
  for (std::int64_t row = 0; row < rows; row += kTogether) {
    const std::int64_t together = rows - row < kTogether ? rows - row : kTogether;
    std::int32_t* first = scores + row * stride;
    std::int32_t highest[kTogether];
    float sum[kTogether];
    for (std::int64_t r = 0; r < together; ++r) highest[r] = highest_score(first + r * stride, n);
    for (std::int64_t r = 0; r < together; ++r) {
      sum[r] = exponentiate(first + r * stride, n, highest[r], scale * kLog2E);
    }
    for (std::int64_t r = 0; r < together; ++r) {
      total[row + r] = store_weights(exponentials(first + r * stride), n, sum[r], weights + (row + r) * weights_stride);
    }
  }
}

}  // namespace
}  // namespace agnews_fast
