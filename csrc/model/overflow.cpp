#include "model/overflow.h"

#include <algorithm>
#include <cstdlib>
#include <limits>

#include "model/error.h"

namespace agnews_fast {
namespace {

constexpr int kPairs = kPanel * kGroup / 2;  // 16-bit lanes of one group of a panel

[[noreturn]] void fail(const std::string& where, std::int64_t column, const std::string& what) {
  throw ModelError(where + ", output column " + std::to_string(column) + ": " + what);
}

void check_outliers(const PackedWeights& w, std::int64_t outliers, const std::string& where) {
  const std::int64_t panels = w.n / kPanel;
  if (w.outlier_begin[0] != 0 || w.outlier_begin[panels] > outliers) {
    throw ModelError(where + ": outlier_begin does not run from 0 to at most " + std::to_string(outliers));
  }
  for (std::int64_t panel = 0; panel < panels; ++panel) {
    if (w.outlier_begin[panel] > w.outlier_begin[panel + 1]) {
      throw ModelError(where + ": outlier_begin decreases at panel " + std::to_string(panel));
    }
  }
  for (std::int64_t i = 0; i < outliers; ++i) {
    if (w.outlier_k[i] < 0 || w.outlier_k[i] >= w.k || w.outlier_column[i] < 0 || w.outlier_column[i] >= kPanel ||
        std::abs(static_cast<std::int64_t>(w.outlier_value[i])) > std::numeric_limits<std::int16_t>::max()) {
      throw ModelError(where + ": outlier " + std::to_string(i) + " lies outside the matrix or is too large");
    }
  }
}

void check_wide(const PackedWeights& w, int levels, const std::string& where) {
  // An activation is at most levels * kWideSteps, but for rounding: less than one more.
  const std::int64_t limit = (std::int64_t{1} << 29) / (levels * kWideSteps + 1);
  for (std::int64_t column = 0; column < w.n; ++column) {
    const std::int16_t* weights = w.wide_weight + (column / kPanel * w.wide * kPanel) + column % kPanel * 2;
    std::int64_t magnitude = 0;
    for (std::int64_t i = 0; i < w.wide; ++i) magnitude += std::abs(int{weights[i / 2 * 2 * kPanel + i % 2]});
    if (magnitude > limit) {
      fail(where, column,
           "the weights of wide channels would overflow 32 bits (they add up to " + std::to_string(magnitude) +
               ", at most " + std::to_string(limit) + " is allowed)");
    }
  }
}

// Of a panel with a window that adds up to more than `limit`: the first of those.
[[noreturn]] void fail_window(const PackedWeights& w, std::int64_t panel, std::int64_t limit,
                              const std::string& where) {
  const std::int8_t* weights = w.data + panel * kPanel * w.k;
  for (std::int64_t group = 0;; group += w.depth) {
    std::int64_t positive[kPairs] = {}, negative[kPairs] = {};
    for (std::int64_t i = 0; i < w.depth * kPanel * kGroup; ++i, ++weights) {
      std::int64_t* lanes = *weights < 0 ? negative : positive;
      lanes[i / 2 % kPairs] += std::abs(*weights);
    }
    for (int i = 0; i < kPairs; ++i) {
      const std::int64_t most = std::max(positive[i], negative[i]);
      if (most > limit) {
        fail(where, panel * kPanel + i / 2,
             "weights near k = " + std::to_string(group * kGroup) + " would overflow 16 bits (a window adds up to " +
                 std::to_string(most) + ", at most " + std::to_string(limit) + " is allowed)");
      }
    }
  }
}

}  // namespace

void check_weights(const Kernels& kernels, const PackedWeights& w, std::int64_t outliers, int levels,
                   const std::string& where) {
  check_outliers(w, outliers, where);
  check_wide(w, levels, where);
  const std::int64_t limit16 = std::numeric_limits<std::int16_t>::max() / levels;
  const std::int64_t limit32 = (std::int64_t{1} << 30) / levels;
  for (std::int64_t panel = 0; panel < w.n / kPanel; ++panel) {
    PanelSums sums;
    kernels.panel_sums(w.data + panel * kPanel * w.k, w.k, w.depth, sums);
    if (sums.largest_window > limit16) fail_window(w, panel, limit16, where);
    if (sums.lowest < -127) {
      const std::int8_t* begin = w.data + panel * kPanel * w.k;
      const std::int64_t at = std::find(begin, begin + kPanel * w.k, -128) - begin;
      fail(where, panel * kPanel + at / kGroup % kPanel, "a packed weight is -128; the least allowed is -127");
    }
    std::int64_t sum[kPanel], magnitude[kPanel];
    std::copy_n(sums.sum, kPanel, sum);
    std::copy_n(sums.magnitude, kPanel, magnitude);
    for (std::int32_t i = w.outlier_begin[panel]; i < w.outlier_begin[panel + 1]; ++i) {
      sum[w.outlier_column[i]] += w.outlier_value[i];
      magnitude[w.outlier_column[i]] += std::abs(w.outlier_value[i]);
    }
    for (int c = 0; c < kPanel; ++c) {
      const std::int64_t column = panel * kPanel + c;
      if (magnitude[c] > limit32) fail(where, column, "weights would overflow 32 bits");
      if (sum[c] != w.column_sum[column]) {
        fail(where, column,
             "the weights add up to " + std::to_string(sum[c]) + ", but column_sum says " +
                 std::to_string(w.column_sum[column]));
      }
    }
  }
}

}  // namespace agnews_fast
