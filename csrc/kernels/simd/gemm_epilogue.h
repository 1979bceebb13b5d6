// What comes with the int8 products of one GEMM tile, written once over F32x16 and I32x16 (see rows.h): wide channels,
// outliers and zero-point correction, then scales, bias and activation.
#pragma once

#include <cstring>

#include "kernels/simd/rows.h"

namespace agnews_fast {
namespace {

// Fetches the weights that come next, a few lines at a time between the products. Into the first-level cache, though many
// will have left it for the second when they are needed: to fetch them into the second right away (_MM_HINT_T1) was 2 %
// slower for a text of 48 tokens, and 5 % with pages of 4 KiB. Without fetching it was 17 %.
struct Prefetch {
  const std::int8_t* next;
  std::int64_t lines;  // of 64 bytes, a block of kKBlock

  inline void block() {
    for (std::int64_t i = 0; i < lines; ++i, next += 64) prefetch_l1(next);
  }
};

// One tile of R rows of a x one panel of w.
struct GemmTile {
  const std::uint8_t* activations;  // [k / 4][R][4]
  const float* scale;               // (R)
  const std::int32_t* zero_point;   // (R)
  const float* window_norm;         // (long_windows(k)) or null
  const std::int16_t* wide;         // [wide / 2][R][2]
  std::int64_t panel;
  float* out;  // the tile's first output
  std::int64_t out_stride;
  Prefetch prefetch;
};

// What row r's sums have besides int8 products and outliers: the wide channels' products less zero_point * column_sum.
template <int R>
inline I32x16 besides_products(const GemmTile& tile, const PackedWeights& w, int r) {
  I32x16 sum = I32x16::broadcast(-tile.zero_point[r]) * I32x16::load(w.column_sum + tile.panel * kPanel);
  const std::int16_t* weights = w.wide_weight + tile.panel * kPanel * w.wide;
  for (std::int64_t pair = 0; pair < w.wide / 2; ++pair, weights += 2 * kPanel) {
    std::int32_t two;
    std::memcpy(&two, tile.wide + (pair * R + r) * 2, sizeof two);
    sum = sum + I32x16::products_s16(weights, two);
  }
  return sum;
}

template <int R>
inline void add_outliers(const GemmTile& tile, const PackedWeights& w, std::int32_t (&acc)[R][kPanel]) {
  for (std::int32_t i = w.outlier_begin[tile.panel]; i < w.outlier_begin[tile.panel + 1]; ++i) {
    const std::int32_t k = w.outlier_k[i], column = w.outlier_column[i], value = w.outlier_value[i];
    const std::uint8_t* u = tile.activations + k / kGroup * (R * kGroup) + k % kGroup;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) acc[r][column] += u[r * kGroup] * value;
  }
}

// From the whole sums, outliers and correction included, to the outputs.
template <int R>
inline void finish_sums(const GemmTile& tile, const PackedWeights& w, Activation activation,
                        const std::int32_t (&acc)[R][kPanel]) {
  const std::int64_t column = tile.panel * kPanel;
  const F32x16 column_scale = F32x16::load(w.scale + column), bias = F32x16::load(w.bias + column);
  for (int r = 0; r < R; ++r) {
    F32x16 y = fma(I32x16::load(acc[r]).to_float(), F32x16::broadcast(tile.scale[r]) * column_scale, bias);
    if (activation == Activation::kGelu) y = gelu(y);
    // In this order the maximum keeps a NaN, and -0, which the sum makes 0.
    if (activation == Activation::kRelu) y = max(F32x16::zero(), y) + F32x16::zero();
    y.store(tile.out + r * tile.out_stride);
  }
}

// Calls Kernel<R>::run(tile, w, context...) for every tile of rows and `panels` panels; R is kRowTile but for the last.
template <template <int> class Kernel, typename... Context>
inline void for_each_row_tile(const PackedRows& a, const PackedWeights& w, std::int64_t panel, std::int64_t panels,
                              float* out, std::int64_t out_stride, const Context&... context) {
  // What comes next is as long as what is multiplied now; the row tiles share the work of fetching it.
  const std::int64_t block_lines = panels * kPanel * kKBlock / 64, blocks = w.k / kKBlock;
  const std::int64_t tiles = (a.rows + kRowTile - 1) / kRowTile, lines = (block_lines + tiles - 1) / tiles;
  const std::int8_t* next = w.data + (panel + panels) * kPanel * w.k;
  for (std::int64_t row = 0, fetched = 0; row < a.rows; row += kRowTile, fetched += lines) {
    const GemmTile tile = {a.data + row * a.k,
                           a.scale + row,
                           a.zero_point + row,
                           a.window_norm == nullptr ? nullptr : a.window_norm + row / kRowTile * long_windows(a.k),
                           a.wide + row * w.wide,
                           panel,
                           out + row * out_stride + panel * kPanel,
                           out_stride,
                           {next + fetched * blocks * 64, fetched < block_lines ? lines : 0}};
    // A store that waits for its line holds up all later ones, and the products store their sums all the time.
    for (std::int64_t r = 0; r < kRowTile && row + r < a.rows; ++r) {
      for (std::int64_t p = 0; p < panels; ++p) {
        prefetch_l1(tile.out + r * out_stride + p * kPanel);
      }
    }
    switch (a.rows - row) {
      case 1:
        Kernel<1>::run(tile, w, context...);
        break;
      case 2:
        Kernel<2>::run(tile, w, context...);
        break;
      case 3:
        Kernel<3>::run(tile, w, context...);
        break;
      case 4:
        Kernel<4>::run(tile, w, context...);
        break;
      case 5:
        Kernel<5>::run(tile, w, context...);
        break;
      default:
        Kernel<kRowTile>::run(tile, w, context...);
    }
  }
}

}  // namespace
}  // namespace agnews_fast
