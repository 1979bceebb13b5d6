#include "model/overflow.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "model/error.h"

namespace agnews_fast {
namespace {

constexpr int kPairs = kPanel * kGroup / 2;  // 16-bit lanes of one group of a panel

// The weights of a pair that was loaded as one value: to gather every second byte takes compilers' SIMD code longer.
inline std::int16_t first_of(std::int16_t pair) {
  return static_cast<std::int16_t>(static_cast<std::int16_t>(pair << 8) >> 8);
}
inline std::int16_t second_of(std::int16_t pair) { return static_cast<std::int16_t>(pair >> 8); }

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

}  // namespace

void check_weights(const PackedWeights& w, std::int64_t outliers, int levels, const std::string& where) {
  check_outliers(w, outliers, where);
  const std::int64_t limit16 = std::numeric_limits<std::int16_t>::max() / levels;
  const std::int64_t limit32 = (std::int64_t{1} << 30) / levels;
  for (std::int64_t panel = 0; panel < w.n / kPanel; ++panel) {
    // Of each pair of weights. At most 2^25: k is at most 2^19 (the context of the widest configuration, each channel of
    // which may be split once), half of which meets in a lane.
    std::int32_t pair_sums[kPairs] = {}, pair_positives[kPairs] = {};
    const std::int8_t* weights = w.data + panel * kPanel * w.k;
    std::int16_t lowest = 0;
    for (std::int64_t group = 0; group < w.k / kGroup; group += w.depth) {
      // Plain loops over fixed arrays, which compilers turn into SIMD: this reads every weight.
      std::int16_t sum[kPairs] = {}, positive[kPairs] = {};
      for (int d = 0; d < w.depth; ++d, weights += kPanel * kGroup) {
        std::int16_t pairs[kPairs];
        std::memcpy(pairs, weights, sizeof(pairs));
        for (int i = 0; i < kPairs; ++i) {
          const std::int16_t a = first_of(pairs[i]), b = second_of(pairs[i]);
          sum[i] = static_cast<std::int16_t>(sum[i] + a + b);
          positive[i] =
              static_cast<std::int16_t>(positive[i] + std::max<std::int16_t>(a, 0) + std::max<std::int16_t>(b, 0));
          lowest = std::min({lowest, a, b});
        }
      }
      std::int16_t worst[kPairs], highest = 0;
      for (int i = 0; i < kPairs; ++i) {
        const std::int16_t negative = static_cast<std::int16_t>(positive[i] - sum[i]);
        worst[i] = std::max(positive[i], negative);
        highest = std::max(highest, worst[i]);
        pair_sums[i] += sum[i];
        pair_positives[i] += positive[i];
      }
      if (highest > limit16) {
        const std::int64_t i = std::find_if(worst, worst + kPairs, [&](int x) { return x > limit16; }) - worst;
        fail(where, panel * kPanel + i / 2,
             "weights near k = " + std::to_string(group * kGroup) + " would overflow 16 bits (a window adds up to " +
                 std::to_string(worst[i]) + ", at most " + std::to_string(limit16) + " is allowed)");
      }
    }
    std::int64_t sums[kPanel] = {}, magnitudes[kPanel] = {};
    for (int i = 0; i < kPairs; ++i) {
      sums[i / 2] += pair_sums[i];
      magnitudes[i / 2] += 2 * pair_positives[i] - pair_sums[i];
    }
    if (lowest < -127) {
      const std::int8_t* begin = w.data + panel * kPanel * w.k;
      const std::int64_t at = std::find(begin, begin + kPanel * w.k, -128) - begin;
      fail(where, panel * kPanel + at / kGroup % kPanel, "a packed weight is -128; the least allowed is -127");
    }
    for (std::int32_t i = w.outlier_begin[panel]; i < w.outlier_begin[panel + 1]; ++i) {
      sums[w.outlier_column[i]] += w.outlier_value[i];
      magnitudes[w.outlier_column[i]] += std::abs(w.outlier_value[i]);
    }
    for (int c = 0; c < kPanel; ++c) {
      const std::int64_t column = panel * kPanel + c;
      if (magnitudes[c] > limit32) fail(where, column, "weights would overflow 32 bits");
      if (sums[c] != w.column_sum[column]) {
        fail(where, column,
             "the weights add up to " + std::to_string(sums[c]) + ", but column_sum says " +
                 std::to_string(w.column_sum[column]));
      }
    }
  }
}

void window_norms(const PackedWeights& w, float* norms) {
  for (std::int64_t panel = 0; panel < w.n / kPanel; ++panel, norms += long_windows(w.k)) {
    const std::int8_t* weights = w.data + panel * kPanel * w.k;
    std::fill_n(norms, long_windows(w.k), 0.0f);
    for (std::int64_t window = 0; window < w.k / (kGroup * kLongDepth); ++window) {
      std::int32_t positive[kPairs] = {}, negative[kPairs] = {};
      for (int d = 0; d < kLongDepth; ++d, weights += kPanel * kGroup) {
        std::int16_t pairs[kPairs];
        std::memcpy(pairs, weights, sizeof(pairs));
        for (int i = 0; i < kPairs; ++i) {
          const std::int16_t a = first_of(pairs[i]), b = second_of(pairs[i]);
          const std::int16_t above_a = std::max<std::int16_t>(a, 0), above_b = std::max<std::int16_t>(b, 0);
          // At most 2 x 127^2 each.
          const auto squares = static_cast<std::int16_t>(a * a + b * b);
          const auto above = static_cast<std::int16_t>(above_a * above_a + above_b * above_b);
          positive[i] += above;
          negative[i] += squares - above;
        }
      }
      norms[window] = std::sqrt(static_cast<float>(
          std::max(*std::max_element(positive, positive + kPairs), *std::max_element(negative, negative + kPairs))));
    }
  }
}

}  // namespace agnews_fast
