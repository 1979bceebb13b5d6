// Sixteen virtual lanes as one AVX-512 register. See simd/rows.h for what each operation means.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace agnews_fast {
namespace {

struct F32x16 {
  static constexpr int kTileVectors = 4;  // 6 rows x 4 vectors: 24 sums in 32 registers
  __m512 lanes;

  static F32x16 load(const float* p) { return {_mm512_load_ps(p)}; }
  static F32x16 broadcast(float x) { return {_mm512_set1_ps(x)}; }
  static F32x16 zero() { return {_mm512_setzero_ps()}; }
  static F32x16 from_i8(const std::int8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(p))))};
  }
  void store(float* p) const { _mm512_store_ps(p, lanes); }

  static __mmask16 mask(std::int64_t n) {
    return n < 16 ? static_cast<__mmask16>((1u << n) - 1u) : static_cast<__mmask16>(0xffff);
  }
  F32x16 first(std::int64_t n) const { return {_mm512_maskz_mov_ps(mask(n), lanes)}; }
  F32x16 first_or(std::int64_t n, F32x16 other) const { return {_mm512_mask_mov_ps(other.lanes, mask(n), lanes)}; }

  // The lane tree: 8, 4, 2, 1 apart.
  float sum() const {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps(lanes, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  float highest() const { return _mm512_reduce_max_ps(lanes); }

  __m128i to_u8() const {
    return _mm512_cvtusepi32_epi8(_mm512_max_epi32(_mm512_cvtps_epi32(lanes), _mm512_setzero_si512()));
  }
};

inline F32x16 operator+(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.lanes, b.lanes)}; }
inline F32x16 operator-(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.lanes, b.lanes)}; }
inline F32x16 operator*(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.lanes, b.lanes)}; }
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.lanes, b.lanes, c.lanes)}; }
inline F32x16 min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.lanes, b.lanes)}; }
inline F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.lanes, b.lanes)}; }
inline F32x16 round(F32x16 a) { return {_mm512_roundscale_ps(a.lanes, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline F32x16 pow2(F32x16 n) {
  const __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n.lanes), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23))};
}

inline F32x16 times_pow2(F32x16 x, F32x16 shifted) {
  const __m512i n = _mm512_slli_epi32(_mm512_castps_si512(shifted.lanes), 23);
  return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x.lanes), n))};
}

// Sixteen 32-bit integers.
struct I32x16 {
  __m512i lanes;

  static I32x16 load(const std::int32_t* p) { return {_mm512_load_si512(p)}; }
  static I32x16 broadcast(std::int32_t x) { return {_mm512_set1_epi32(x)}; }
  static I32x16 zero() { return {_mm512_setzero_si512()}; }
  static I32x16 magnitude_bits(const float* p) {
    return {_mm512_and_si512(_mm512_load_si512(p), _mm512_set1_epi32(0x7fffffff))};
  }
  static I32x16 products_s16(const std::int16_t* pairs, std::int32_t pair) {
    return {_mm512_madd_epi16(_mm512_set1_epi32(pair), _mm512_load_si512(pairs))};
  }
  static I32x16 bits(F32x16 x) { return {_mm512_castps_si512(x.lanes)}; }
  static I32x16 nearest(F32x16 x) { return {_mm512_cvtps_epi32(x.lanes)}; }
  F32x16 to_float() const { return {_mm512_cvtepi32_ps(lanes)}; }
  void store(std::int32_t* p) const { _mm512_store_si512(p, lanes); }
  void to_s16(__m128i& first, __m128i& second) const {
    const __m256i words = _mm512_cvtsepi32_epi16(lanes);
    first = _mm256_castsi256_si128(words);
    second = _mm256_extracti128_si256(words, 1);
  }

  I32x16 first_or(std::int64_t n, I32x16 other) const {
    return {_mm512_mask_mov_epi32(other.lanes, F32x16::mask(n), lanes)};
  }
  std::int32_t sum() const { return _mm512_reduce_add_epi32(lanes); }
  std::int32_t highest() const { return _mm512_reduce_max_epi32(lanes); }
};

inline I32x16 operator+(I32x16 a, I32x16 b) { return {_mm512_add_epi32(a.lanes, b.lanes)}; }
inline I32x16 operator-(I32x16 a, I32x16 b) { return {_mm512_sub_epi32(a.lanes, b.lanes)}; }
inline I32x16 operator*(I32x16 a, I32x16 b) { return {_mm512_mullo_epi32(a.lanes, b.lanes)}; }
inline I32x16 max(I32x16 a, I32x16 b) { return {_mm512_max_epi32(a.lanes, b.lanes)}; }
inline I32x16 max_unsigned(I32x16 a, I32x16 b) { return {_mm512_max_epu32(a.lanes, b.lanes)}; }

inline float round_scalar(float x) {
  const __m128 v = _mm_set_ss(x);
  return _mm_cvtss_f32(_mm_round_ss(v, v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline float sqrt_scalar(float x) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x))); }

}  // namespace
}  // namespace agnews_fast
