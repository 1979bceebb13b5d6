// The tiles of the 16-bit matrix products, and what becomes of their sums, over I32x16 (see attention_s16.h).
//
// An instruction set brings: kPanelsS16, the panels of its widest tile, and
//   products_s16<R, P>(a, a_stride, b, pairs, sum): sum[r][p] (I32x16) = row r times panel p over `pairs` pairs of k; a
//   panel is 32 * pairs numbers after the one before.
#pragma once

#include "kernels/simd/attention_s16.h"

namespace agnews_fast {
namespace {

struct OperandsS16 {
  const std::int16_t* a;
  std::int64_t a_stride;
  const std::int16_t* b;
  std::int64_t pairs;
};

template <int R, int P, typename Store>
inline void tile_s16(const OperandsS16& x, std::int64_t row, std::int64_t panel, const Store& store) {
  I32x16 sum[R][P];
  products_s16<R, P>(x.a + row * x.a_stride, x.a_stride, x.b + panel * 2 * kPanel * x.pairs, x.pairs, sum);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) store(row + r, (panel + p) * kPanel, sum[r][p]);
  }
}

// A panel, or a few, stay in the first-level cache while the rows stream past.
template <int P, typename Store>
inline void panels_s16(const OperandsS16& x, std::int64_t m, std::int64_t panel, const Store& store) {
  for (std::int64_t row = 0; row < m; row += kRowTile) {
    switch (m - row) {
      case 1:
        tile_s16<1, P>(x, row, panel, store);
        break;
      case 2:
        tile_s16<2, P>(x, row, panel, store);
        break;
      case 3:
        tile_s16<3, P>(x, row, panel, store);
        break;
      case 4:
        tile_s16<4, P>(x, row, panel, store);
        break;
      case 5:
        tile_s16<5, P>(x, row, panel, store);
        break;
      default:
        tile_s16<kRowTile, P>(x, row, panel, store);
    }
  }
}

// Calls store(row, column, sums of 16 columns).
template <typename Store>
inline void gemm_s16(const OperandsS16& x, std::int64_t m, std::int64_t n, const Store& store) {
  const std::int64_t panels = n / kPanel;
  std::int64_t panel = 0;
  for (; panel + kPanelsS16 <= panels; panel += kPanelsS16) panels_s16<kPanelsS16>(x, m, panel, store);
  if constexpr (kPanelsS16 > 1) {
    for (; panel + 2 <= panels; panel += 2) panels_s16<2>(x, m, panel, store);
    if (panel < panels) panels_s16<1>(x, m, panel, store);
  }
}

void gemm_s16s32(const std::int16_t* a, std::int64_t a_stride, const std::int16_t* b, std::int64_t m, std::int64_t n,
                 std::int64_t k, std::int32_t* c, std::int64_t c_stride) {
  gemm_s16({a, a_stride, b, (k + 1) / 2}, m, n,
           [=](std::int64_t row, std::int64_t column, I32x16 sum) { sum.store(c + row * c_stride + column); });
}

void gemm_s16f32(const std::int16_t* a, std::int64_t a_stride, const std::int16_t* b, std::int64_t m, std::int64_t n,
                 std::int64_t k, const float* scale, float* c, std::int64_t c_stride) {
  gemm_s16({a, a_stride, b, (k + 1) / 2}, m, n, [=](std::int64_t row, std::int64_t column, I32x16 sum) {
    (sum.to_float() * F32x16::broadcast(scale[row])).store(c + row * c_stride + column);
  });
}

}  // namespace
}  // namespace agnews_fast
