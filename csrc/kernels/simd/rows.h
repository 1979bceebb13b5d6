// The floating-point kernels, written once over a vector of 16 floats (one virtual lane each). Each instruction set
// includes this file in its own translation unit with its own F32x16, so that no code compiled for one instruction set
// can be linked into another: everything here is in an anonymous namespace.
//
// F32x16 offers: load, store, broadcast, zero; + - *; fma(a, b, c) = a * b + c; min(a, b) = a < b ? a : b;
// max(a, b) = a > b ? a : b; round (to nearest even); pow2 (2^n of integral floats); first(n) (the value in lanes below
// n, 0 above); first_or(n, other); sum, lowest, highest (across lanes; sum in the order of the lane tree); from_i8;
// from_products (see gemm_epilogue.h); store_levels (see quantize_tile).
#pragma once

#include "kernels/kernels.h"
#include "kernels/polynomials.h"

namespace agnews_fast {
namespace {

template <int N>
inline F32x16 horner(const float (&coefficients)[N], F32x16 x) {
  F32x16 sum = F32x16::broadcast(coefficients[0]);
#pragma GCC unroll 16
  for (int i = 1; i < N; ++i) sum = fma(sum, x, F32x16::broadcast(coefficients[i]));
  return sum;
}

inline F32x16 exp_nonpositive(F32x16 x) {
  x = max(x, F32x16::broadcast(kExpLowest));
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

void quantize_tile(const float* x, std::int64_t stride, std::int64_t rows, const Quantization& q, std::uint8_t* tile,
                   float* scale, std::int32_t* zero_point) {
  const float levels = static_cast<float>(q.levels);
  const std::int64_t group_stride = rows * kGroup;
  for (std::int64_t row = 0; row < rows; ++row) {
    const float* values = x + row * stride;
    F32x16 lo = F32x16::zero(), hi = F32x16::zero();
    for (std::int64_t c = 0; c < q.columns; c += kLanes) {
      const F32x16 v = F32x16::load(values + c) * F32x16::load(q.inverse_divisor + c);
      lo = min(v, lo);
      hi = max(v, hi);
    }
    const float lowest = lo.lowest();
    const float range = hi.highest() - lowest;
    const bool empty = !(range >= kSmallestRange);
    const float inverse = empty ? 0.0f : levels / range;
    const float zero = round_scalar(-lowest * inverse);
    scale[row] = empty ? 0.0f : range / levels;
    zero_point[row] = static_cast<std::int32_t>(zero);
    std::uint8_t* bytes = tile + row * kGroup;
    for (std::int64_t c = 0; c < q.columns; c += kLanes) {
      const F32x16 v = F32x16::load(values + c) * F32x16::load(q.inverse_divisor + c);
      const F32x16 level = round(fma(v, F32x16::broadcast(inverse), F32x16::broadcast(zero)));
      // max first: it turns a NaN into 0, as the specification does.
      const F32x16 clamped = min(max(level, F32x16::zero()), F32x16::broadcast(levels));
      clamped.store_levels(bytes + c / kGroup * group_stride, group_stride);
    }
    std::int64_t k = q.columns;
    for (std::int64_t i = 0; i < q.splits; ++i, ++k) {
      const std::int64_t from = q.split_channel[i];
      bytes[k / kGroup * group_stride + k % kGroup] = bytes[from / kGroup * group_stride + from % kGroup];
    }
    for (; k < q.k; ++k) bytes[k / kGroup * group_stride + k % kGroup] = 0;
  }
}

void layer_norm(const float* x, const float* residual, std::int64_t columns, const float* gamma, const float* beta,
                float epsilon, float* out) {
  const auto value = [&](std::int64_t c) {
    const F32x16 v = F32x16::load(x + c);
    return residual ? v + F32x16::load(residual + c) : v;
  };
  const float count = static_cast<float>(columns);
  F32x16 sum = F32x16::zero(), squares = F32x16::zero();
  for (std::int64_t c = 0; c < columns; c += kLanes) sum = sum + value(c);  // the padding holds zeros
  const float mean = sum.sum() / count;
  const F32x16 means = F32x16::broadcast(mean);
  const std::int64_t whole = columns / kLanes * kLanes;
  for (std::int64_t c = 0; c < whole; c += kLanes) {
    const F32x16 d = value(c) - means;
    squares = fma(d, d, squares);
  }
  if (whole < columns) {
    const F32x16 d = (value(whole) - means).first(columns - whole);
    squares = fma(d, d, squares);
  }
  const F32x16 rstd = F32x16::broadcast(1.0f / sqrt_scalar(squares.sum() / count + epsilon));
  for (std::int64_t c = 0; c < columns; c += kLanes) {
    fma((value(c) - means) * rstd, F32x16::load(gamma + c), F32x16::load(beta + c)).store(out + c);
  }
}

void embed(const std::int8_t* word, float word_scale, const float* position, std::int64_t columns, float* out) {
  for (std::int64_t c = 0; c < columns; c += kLanes) {
    fma(F32x16::from_i8(word + c), F32x16::broadcast(word_scale), F32x16::load(position + c)).store(out + c);
  }
}

float softmax(float* scores, std::int64_t n) {
  const F32x16 first = F32x16::broadcast(scores[0]);
  F32x16 highest = first, sum = F32x16::zero();
  for (std::int64_t i = 0; i < n; i += kLanes) {
    highest = max(F32x16::load(scores + i).first_or(n - i, first), highest);
  }
  const F32x16 shift = F32x16::broadcast(highest.highest());
  for (std::int64_t i = 0; i < n; i += kLanes) {
    const F32x16 e = exp_nonpositive(F32x16::load(scores + i) - shift).first(n - i);
    e.store(scores + i);
    sum = sum + e;
  }
  return 1.0f / sum.sum();
}

// R rows x V vectors of c, every fma chain in a register.
template <int R, int V>
inline void gemm_f32_tile(const float* a, std::int64_t a_stride, const float* b, std::int64_t b_stride, std::int64_t k,
                          const float* scale, const float* bias, float* c, std::int64_t c_stride) {
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
    for (int v = 0; v < V; ++v) column[v] = F32x16::load(b + p * b_stride + v * kLanes);
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
void gemm_f32_rows(const float* a, std::int64_t a_stride, const float* b, std::int64_t b_stride, std::int64_t n,
                   std::int64_t k, const float* scale, const float* bias, float* c, std::int64_t c_stride) {
  std::int64_t j = 0;
  for (; j + F32x16::kTileVectors * kLanes <= n; j += F32x16::kTileVectors * kLanes) {
    gemm_f32_tile<R, F32x16::kTileVectors>(a, a_stride, b + j, b_stride, k, scale, bias ? bias + j : nullptr, c + j,
                                           c_stride);
  }
  for (; j < n; j += kLanes) {
    gemm_f32_tile<R, 1>(a, a_stride, b + j, b_stride, k, scale, bias ? bias + j : nullptr, c + j, c_stride);
  }
}

void gemm_f32(const float* a, std::int64_t a_stride, const float* b, std::int64_t b_stride, std::int64_t m,
              std::int64_t n, std::int64_t k, const float* scale, const float* bias, float* c, std::int64_t c_stride) {
  constexpr decltype(&gemm_f32_rows<1>) kRows[] = {nullptr,          gemm_f32_rows<1>, gemm_f32_rows<2>,
                                                   gemm_f32_rows<3>, gemm_f32_rows<4>, gemm_f32_rows<5>,
                                                   gemm_f32_rows<6>};
  for (std::int64_t i = 0; i < m; i += kRowTile) {
    const std::int64_t rows = m - i < kRowTile ? m - i : kRowTile;
    kRows[rows](a + i * a_stride, a_stride, b, b_stride, n, k, scale ? scale + i : nullptr, bias, c + i * c_stride,
                c_stride);
  }
}

}  // namespace
}  // namespace agnews_fast
