// The floating-point kernels, written once over a vector of 16 floats (one virtual lane each). Each instruction set
// includes this file in its own translation unit with its own F32x16, so that no code compiled for one instruction set
// can be linked into another: everything here is in an anonymous namespace.
//
// F32x16 offers: load, store, broadcast, zero; + - *; fma(a, b, c) = a * b + c; min(a, b) = a < b ? a : b;
// max(a, b) = a > b ? a : b; round (to nearest even); pow2 (2^n of integral floats); first(n) (the value in lanes below
// n, 0 above); first_or(n, other); sum, highest (across lanes; sum in the order of the lane tree); from_i8;
// to_u8 (rounded to nearest, saturated to 0..255).
//
// I32x16, 32-bit integers, offers: load, store, broadcast, zero; + *; to_float; bits (of floats); max, max_unsigned;
// highest (across lanes); products_s16(16 pairs of 16-bit numbers, one pair): each lane's two products added.
//
// What only moves data (store_levels, transpose) uses the 128-bit intrinsics that every x86-64 has.
#pragma once

#include <cstring>

#include "kernels/kernels.h"
#include "kernels/polynomials.h"

namespace agnews_fast {
namespace {

// Fetch a line that is needed later into the first-level or the second-level cache: hardware prefetchers stop at every
// 4 KiB. p may lie past the end of an array.
inline void prefetch_l1(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
inline void prefetch_l2(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

inline float float_of(std::int32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

template <int N>
inline F32x16 horner(const float (&coefficients)[N], F32x16 x) {
  F32x16 sum = F32x16::broadcast(coefficients[0]);
#pragma GCC unroll 16
  for (int i = 1; i < N; ++i) sum = fma(sum, x, F32x16::broadcast(coefficients[i]));
  return sum;
}

inline F32x16 exp_nonpositive(F32x16 x) {
  x = max(F32x16::broadcast(kExpLowest), x);  // in this order a NaN stays
  const F32x16 n = round(x * F32x16::broadcast(kLog2E));
  F32x16 r = fma(n, F32x16::broadcast(-kLn2High), x);
  r = fma(n, F32x16::broadcast(-kLn2Low), r);
  return horner(kExp, r) * pow2(n);
}

inline F32x16 gelu(F32x16 x) {
  F32x16 t = min(x, F32x16::broadcast(kGeluClamp));
  t = max(t, F32x16::broadcast(-kGeluClamp));
  const F32x16 argument = fma(t * t, F32x16::broadcast(kGeluArgument), F32x16::broadcast(-1.0f));
  return x * fma(t, horner(kGelu, argument), F32x16::broadcast(0.5f));
}

// Stores 16 levels of each of R rows into a tile: group g of row r at p + (g * R + r) * 4.
template <int R>
inline void store_levels(const __m128i (&rows)[R], std::uint8_t* p) {
  if constexpr (R == kRowTile) {
    // Transposed as 4 x 4 groups: rows 0-3 give 16 bytes to each group, rows 4 and 5 the 8 bytes behind them.
    const __m128i low01 = _mm_unpacklo_epi32(rows[0], rows[1]), high01 = _mm_unpackhi_epi32(rows[0], rows[1]);
    const __m128i low23 = _mm_unpacklo_epi32(rows[2], rows[3]), high23 = _mm_unpackhi_epi32(rows[2], rows[3]);
    const __m128i low45 = _mm_unpacklo_epi32(rows[4], rows[5]), high45 = _mm_unpackhi_epi32(rows[4], rows[5]);
    const __m128i first[4] = {_mm_unpacklo_epi64(low01, low23), _mm_unpackhi_epi64(low01, low23),
                              _mm_unpacklo_epi64(high01, high23), _mm_unpackhi_epi64(high01, high23)};
    const __m128i last[4] = {low45, _mm_unpackhi_epi64(low45, low45), high45, _mm_unpackhi_epi64(high45, high45)};
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p + g * R * kGroup), first[g]);
      _mm_storel_epi64(reinterpret_cast<__m128i*>(p + g * R * kGroup + 16), last[g]);
    }
  } else {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      std::int32_t groups[4];
      _mm_storeu_si128(reinterpret_cast<__m128i*>(groups), rows[r]);
      for (int g = 0; g < 4; ++g) std::memcpy(p + (g * R + r) * kGroup, groups + g, kGroup);
    }
  }
}

template <int R>
void quantize_rows(const float* x, std::int64_t stride, const Quantization& q, std::uint8_t* tile, std::int16_t* wide,
                   float* scale, std::int32_t* zero_point) {
  const float levels = static_cast<float>(q.levels);
  float inverse[R], zero[R];
  for (int r = 0; r < R; ++r) {
    const float* values = x + r * stride;
    // The bits of positive numbers have their order, those of negative ones, unsigned, that of their magnitudes, and so
    // have both with zeros: 0 and -0. Infinity is above the finite ones and NaN above it, so that either stays.
    I32x16 lo = I32x16::broadcast(INT32_MIN), hi = I32x16::zero();
    for (std::int64_t c = 0; c < q.columns; c += kLanes) {
      const I32x16 v = I32x16::bits(F32x16::load(values + c) * F32x16::load(q.inverse_divisor + c));
      lo = max_unsigned(v, lo);
      hi = max(v, hi);
    }
    const float lowest = float_of(lo.highest());  // all lanes are negative: their order is also the signed one
    const float range = float_of(hi.highest()) - lowest;
    const bool usable = range >= kSmallestRange && range <= kLargestRange;
    inverse[r] = usable ? levels / range : 0.0f;
    zero[r] = usable ? round_scalar(-lowest * inverse[r]) : 0.0f;
    scale[r] = usable ? range / levels : range <= kLargestRange ? 0.0f : __builtin_nanf("");
    zero_point[r] = static_cast<std::int32_t>(zero[r]);
  }
  const __m128i highest = _mm_set1_epi8(static_cast<char>(q.levels));
  for (std::int64_t c = 0; c < q.columns; c += kLanes) {
    const F32x16 divisor = F32x16::load(q.inverse_divisor + c);
    __m128i level[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const F32x16 v = F32x16::load(x + r * stride + c) * divisor;
      prefetch_l2(x + (r + R) * stride + c);
      // Conversion rounds to nearest; saturation clamps at 0 (a NaN converts to the least integer) and 255.
      level[r] = _mm_min_epu8(fma(v, F32x16::broadcast(inverse[r]), F32x16::broadcast(zero[r])).to_u8(), highest);
    }
    store_levels<R>(level, tile + c * R);
  }
  std::memset(tile + q.columns * R, 0, static_cast<std::size_t>((q.k - q.columns) * R));
  for (std::int64_t i = 0; i < q.wide; ++i) {
    const std::int64_t channel = q.wide_channel[i];
    const float divisor = q.inverse_divisor[channel];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const float v = x[r * stride + channel] * divisor;
      const float steps = inverse[r] > 0.0f ? round_scalar(v * inverse[r] * kWideSteps) : 0.0f;
      wide[(i / 2 * R + r) * 2 + i % 2] = static_cast<std::int16_t>(steps);
    }
  }
}

void quantize_tile(const float* x, std::int64_t stride, std::int64_t rows, const Quantization& q, std::uint8_t* tile,
                   std::int16_t* wide, float* scale, std::int32_t* zero_point, float* /*window_norm*/) {
  constexpr decltype(&quantize_rows<1>) kRows[] = {nullptr,          quantize_rows<1>, quantize_rows<2>,
                                                   quantize_rows<3>, quantize_rows<4>, quantize_rows<5>,
                                                   quantize_rows<6>};
  kRows[rows](x, stride, q, tile, wide, scale, zero_point);
}

// R rows at once: their sums are chains of dependent additions, which hide each other's latency.
template <int R>
inline void layer_norm_rows(const float* x, const float* residual, std::int64_t stride, std::int64_t columns,
                            const float* gamma, const float* beta, float epsilon, float* out, float* rstds) {
  const auto value = [&](int r, std::int64_t c) {
    const F32x16 v = F32x16::load(x + r * stride + c);
    return residual ? v + F32x16::load(residual + r * stride + c) : v;
  };
  const float count = static_cast<float>(columns);
  F32x16 sum[R], squares[R], mean[R], rstd[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) sum[r] = squares[r] = F32x16::zero();
  const std::int64_t whole = columns / kLanes * kLanes;
  for (std::int64_t c = 0; c < whole; c += kLanes) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) sum[r] = sum[r] + value(r, c);
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    if (whole < columns) sum[r] = sum[r] + value(r, whole).first(columns - whole);
    mean[r] = F32x16::broadcast(sum[r].sum() / count);
  }
  for (std::int64_t c = 0; c < whole; c += kLanes) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const F32x16 d = value(r, c) - mean[r];
      squares[r] = fma(d, d, squares[r]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    if (whole < columns) {
      const F32x16 d = (value(r, whole) - mean[r]).first(columns - whole);
      squares[r] = fma(d, d, squares[r]);
    }
    const float reciprocal = 1.0f / sqrt_scalar(squares[r].sum() / count + epsilon);
    if (rstds) rstds[r] = reciprocal;
    rstd[r] = F32x16::broadcast(reciprocal);
  }
  for (std::int64_t c = 0; c < columns; c += kLanes) {
    const F32x16 g = F32x16::load(gamma + c), b = F32x16::load(beta + c);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      // The padding stays 0 even where mean * rstd overflows.
      fma((value(r, c) - mean[r]) * rstd[r], g, b).first(columns - c).store(out + r * stride + c);
      prefetch_l2(x + (r + R) * stride + c);
      if (residual) prefetch_l2(residual + (r + R) * stride + c);
    }
  }
}

void layer_norm(const float* x, const float* residual, std::int64_t stride, std::int64_t rows, std::int64_t columns,
                const float* gamma, const float* beta, float epsilon, float* out, float* rstds) {
  constexpr int kTogether = 3;
  std::int64_t row = 0;
  const auto some = [&]<int R>() {
    const std::int64_t at = row * stride;
    layer_norm_rows<R>(x + at, residual ? residual + at : nullptr, stride, columns, gamma, beta, epsilon, out + at,
                       rstds ? rstds + row : nullptr);
  };
  for (; row + kTogether <= rows; row += kTogether) some.template operator()<kTogether>();
  for (; row < rows; ++row) some.template operator()<1>();
}

void embed(const std::int8_t* word, float word_scale, const float* position, std::int64_t columns, float* out) {
  for (std::int64_t c = 0; c < columns; c += kLanes) {
    fma(F32x16::from_i8(word + c), F32x16::broadcast(word_scale), F32x16::load(position + c)).store(out + c);
  }
}

void project_embedding(const std::int8_t* word, float word_scale, const std::int8_t* position, float position_scale,
                       float rstd, const float* bias, std::int64_t columns, float* out) {
  for (std::int64_t c = 0; c < columns; c += kLanes) {
    const F32x16 of_position = F32x16::from_i8(position + c) * F32x16::broadcast(position_scale);
    const F32x16 sum = fma(F32x16::from_i8(word + c), F32x16::broadcast(word_scale), of_position);
    fma(sum, F32x16::broadcast(rstd), F32x16::load(bias + c)).store(out + c);
  }
}

// R rows at once, so that their exponentials and reductions hide each other's latency.
template <int R>
inline void softmax_rows(float* scores, std::int64_t stride, std::int64_t n, float* inverse_sum) {
  F32x16 first[R], highest[R], sum[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    first[r] = highest[r] = F32x16::broadcast(scores[r * stride]);
    sum[r] = F32x16::zero();
  }
  for (std::int64_t i = 0; i < n; i += kLanes) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      highest[r] = max(F32x16::load(scores + r * stride + i).first_or(n - i, first[r]), highest[r]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) highest[r] = F32x16::broadcast(highest[r].highest());
  for (std::int64_t i = 0; i < n; i += kLanes) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      float* p = scores + r * stride + i;
      const F32x16 e = exp_nonpositive(F32x16::load(p) - highest[r]).first(n - i);
      e.store(p);
      sum[r] = sum[r] + e;
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) inverse_sum[r] = 1.0f / sum[r].sum();
}

void softmax(float* scores, std::int64_t stride, std::int64_t rows, std::int64_t n, float* inverse_sum) {
  constexpr int kTogether = 2;
  std::int64_t row = 0;
  for (; row + kTogether <= rows; row += kTogether) {
    softmax_rows<kTogether>(scores + row * stride, stride, n, inverse_sum + row);
  }
  if (row < rows) softmax_rows<1>(scores + row * stride, stride, n, inverse_sum + row);
}

void transpose(const float* x, std::int64_t stride, std::int64_t rows, std::int64_t columns, float* out,
               std::int64_t out_stride) {
  // Blocks of 4 x 4; rows past the end are read as zeros.
  for (std::int64_t r = 0; r < rows; r += 4) {
    const auto load = [&](std::int64_t i, std::int64_t c) {
      return r + i < rows ? _mm_load_ps(x + (r + i) * stride + c) : _mm_setzero_ps();
    };
    for (std::int64_t c = 0; c < columns; c += 4) {
      __m128 a = load(0, c), b = load(1, c), d = load(2, c), e = load(3, c);
      _MM_TRANSPOSE4_PS(a, b, d, e);
      float* to = out + c * out_stride + r;
      _mm_store_ps(to, a);
      _mm_store_ps(to + out_stride, b);
      _mm_store_ps(to + 2 * out_stride, d);
      _mm_store_ps(to + 3 * out_stride, e);
    }
  }
  const std::int64_t written = (rows + 3) / 4 * 4, padded = (rows + kLanes - 1) / kLanes * kLanes;
  for (std::int64_t c = 0; c < columns; ++c) {
    for (std::int64_t r = written; r < padded; r += 4) _mm_store_ps(out + c * out_stride + r, _mm_setzero_ps());
  }
}

// R rows x V vectors of c, every fma chain in a register.
template <int R, int V>
inline void gemm_f32_tile(const float* a, std::int64_t a_stride, const float* b, std::int64_t b_stride,
                          std::int64_t b_panel_stride, std::int64_t k, const float* scale, const float* bias, float* c,
                          std::int64_t c_stride) {
  F32x16 sum[R][V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) {
    const F32x16 start = bias ? F32x16::load(bias + v * kLanes) : F32x16::zero();
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) sum[r][v] = start;
  }
  for (std::int64_t p = 0; p < k; ++p) {
    F32x16 column[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) column[v] = F32x16::load(b + p * b_stride + v * b_panel_stride);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const F32x16 row = F32x16::broadcast(a[r * a_stride + p]);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[r][v] = fma(row, column[v], sum[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const F32x16 value = scale ? F32x16::broadcast(scale[r]) * sum[r][v] : sum[r][v];
      value.store(c + r * c_stride + v * kLanes);
    }
  }
}

template <int R>
void gemm_f32_rows(const float* a, std::int64_t a_stride, const float* b, std::int64_t b_stride,
                   std::int64_t b_panel_stride, std::int64_t n, std::int64_t k, const float* scale, const float* bias,
                   float* c, std::int64_t c_stride) {
  // Few rows take more vectors, so that there are enough chains to hide the latency of fma.
  constexpr int kVectors = R < 3 ? 4 : F32x16::kTileVectors;
  const auto tile = [&]<int V>(std::int64_t j) {
    gemm_f32_tile<R, V>(a, a_stride, b + j / kLanes * b_panel_stride, b_stride, b_panel_stride, k, scale,
                        bias ? bias + j : nullptr, c + j, c_stride);
  };
  std::int64_t j = 0;
  for (; j + kVectors * kLanes <= n; j += kVectors * kLanes) tile.template operator()<kVectors>(j);
  for (; j < n; j += kLanes) tile.template operator()<1>(j);
}

void gemm_f32(const float* a, std::int64_t a_stride, const float* b, std::int64_t b_stride, std::int64_t b_panel_stride,
              std::int64_t m, std::int64_t n, std::int64_t k, const float* scale, const float* bias, float* c,
              std::int64_t c_stride) {
  constexpr decltype(&gemm_f32_rows<1>) kRows[] = {nullptr,          gemm_f32_rows<1>, gemm_f32_rows<2>,
                                                   gemm_f32_rows<3>, gemm_f32_rows<4>, gemm_f32_rows<5>,
                                                   gemm_f32_rows<6>};
  for (std::int64_t i = 0; i < m; i += kRowTile) {
    const std::int64_t rows = m - i < kRowTile ? m - i : kRowTile;
    kRows[rows](a + i * a_stride, a_stride, b, b_stride, b_panel_stride, n, k, scale ? scale + i : nullptr, bias,
                c + i * c_stride, c_stride);
  }
}

}  // namespace
}  // namespace agnews_fast
