// Sixteen virtual lanes as two AVX2 registers. See simd/rows.h for what each operation means.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace agnews_fast {
namespace {

// Lanes below n of a vector of 16: mask_words + 16 - n, for n in 0..16.
alignas(64) constexpr std::int32_t kMaskWords[32] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
                                                     0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0};

struct F32x16 {
  static constexpr int kTileVectors = 1;  // 6 rows x 1 vector: 12 sums in 16 registers
  __m256 low, high;

  static F32x16 load(const float* p) { return {_mm256_load_ps(p), _mm256_load_ps(p + 8)}; }
  static F32x16 broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static F32x16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static F32x16 from_i8(const std::int8_t* p) {
    const __m128i bytes = _mm_load_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
  }
  static __m256i load_i32(const std::int32_t* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }
  void store(float* p) const {
    _mm256_store_ps(p, low);
    _mm256_store_ps(p + 8, high);
  }

  static const std::int32_t* mask(std::int64_t n) { return kMaskWords + 16 - (n < 16 ? n : 16); }
  F32x16 first(std::int64_t n) const {
    const float* m = reinterpret_cast<const float*>(mask(n));
    return {_mm256_and_ps(low, _mm256_loadu_ps(m)), _mm256_and_ps(high, _mm256_loadu_ps(m + 8))};
  }
  F32x16 first_or(std::int64_t n, F32x16 other) const {
    const float* m = reinterpret_cast<const float*>(mask(n));
    return {_mm256_blendv_ps(other.low, low, _mm256_loadu_ps(m)),
            _mm256_blendv_ps(other.high, high, _mm256_loadu_ps(m + 8))};
  }

  // The lane tree: 8, 4, 2, 1 apart.
  float sum() const {
    const __m256 eight = _mm256_add_ps(low, high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  float highest() const {
    const __m256 eight = _mm256_max_ps(low, high);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }

  __m128i to_u8() const {
    // 16-bit lanes after packs: 0-3 8-11 | 4-7 12-15; packus then leaves bytes 0-3 8-11 in the low half, the rest above.
    const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(low), _mm256_cvtps_epi32(high));
    const __m256i bytes = _mm256_packus_epi16(words, words);
    return _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
  }
};

inline F32x16 operator+(F32x16 a, F32x16 b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline F32x16 operator-(F32x16 a, F32x16 b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
inline F32x16 operator*(F32x16 a, F32x16 b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline F32x16 min(F32x16 a, F32x16 b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
inline F32x16 max(F32x16 a, F32x16 b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
inline F32x16 round(F32x16 a) {
  constexpr int kMode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.low, kMode), _mm256_round_ps(a.high, kMode)};
}
inline __m256 pow2(__m256 n) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}
inline F32x16 pow2(F32x16 n) { return {pow2(n.low), pow2(n.high)}; }

inline F32x16 times_pow2(F32x16 x, F32x16 shifted) {
  const auto half = [](__m256 v, __m256 n) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v), _mm256_slli_epi32(_mm256_castps_si256(n), 23)));
  };
  return {half(x.low, shifted.low), half(x.high, shifted.high)};
}

// Sixteen 32-bit integers.
struct I32x16 {
  __m256i low, high;

  static I32x16 load(const std::int32_t* p) { return {F32x16::load_i32(p), F32x16::load_i32(p + 8)}; }
  static I32x16 broadcast(std::int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
  static I32x16 zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  static I32x16 magnitude_bits(const float* p) {
    const __m256i all_but_sign = _mm256_set1_epi32(0x7fffffff);
    const F32x16 x = F32x16::load(p);
    return {_mm256_and_si256(_mm256_castps_si256(x.low), all_but_sign),
            _mm256_and_si256(_mm256_castps_si256(x.high), all_but_sign)};
  }
  static I32x16 products_s16(const std::int16_t* pairs, std::int32_t pair) {
    const auto* columns = reinterpret_cast<const __m256i*>(pairs);
    const __m256i x = _mm256_set1_epi32(pair);
    return {_mm256_madd_epi16(x, _mm256_load_si256(columns)), _mm256_madd_epi16(x, _mm256_load_si256(columns + 1))};
  }
  static I32x16 bits(F32x16 x) { return {_mm256_castps_si256(x.low), _mm256_castps_si256(x.high)}; }
  static I32x16 nearest(F32x16 x) { return {_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high)}; }
  F32x16 to_float() const { return {_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)}; }
  void store(std::int32_t* p) const {
    _mm256_store_si256(reinterpret_cast<__m256i*>(p), low);
    _mm256_store_si256(reinterpret_cast<__m256i*>(p + 8), high);
  }
  void to_s16(__m128i& first, __m128i& second) const {
    first = _mm_packs_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
    second = _mm_packs_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
  }

  I32x16 first_or(std::int64_t n, I32x16 other) const {
    const auto* m = reinterpret_cast<const __m256i*>(F32x16::mask(n));
    return {_mm256_blendv_epi8(other.low, low, _mm256_loadu_si256(m)),
            _mm256_blendv_epi8(other.high, high, _mm256_loadu_si256(m + 1))};
  }
  std::int32_t sum() const {
    const __m256i eight = _mm256_add_epi32(low, high);
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
  }
  std::int32_t highest() const {
    const __m256i eight = _mm256_max_epi32(low, high);
    const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i two = _mm_max_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 1)));
  }
};

inline I32x16 operator+(I32x16 a, I32x16 b) {
  return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
}
inline I32x16 operator-(I32x16 a, I32x16 b) {
  return {_mm256_sub_epi32(a.low, b.low), _mm256_sub_epi32(a.high, b.high)};
}
inline I32x16 operator*(I32x16 a, I32x16 b) {
  return {_mm256_mullo_epi32(a.low, b.low), _mm256_mullo_epi32(a.high, b.high)};
}
inline I32x16 max(I32x16 a, I32x16 b) { return {_mm256_max_epi32(a.low, b.low), _mm256_max_epi32(a.high, b.high)}; }
inline I32x16 max_unsigned(I32x16 a, I32x16 b) {
  return {_mm256_max_epu32(a.low, b.low), _mm256_max_epu32(a.high, b.high)};
}

inline float round_scalar(float x) {
  const __m128 v = _mm_set_ss(x);
  return _mm_cvtss_f32(_mm_round_ss(v, v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline float sqrt_scalar(float x) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x))); }

}  // namespace
}  // namespace agnews_fast
