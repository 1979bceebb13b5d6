#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <vector>

#include "arrays.h"
#include "check.h"
#include "kernels/each_isa.h"

namespace agnews_fast {
namespace {

// Weights (k, n) as written down, and packed.
struct Weights {
  Weights(std::int64_t k_, std::int64_t n_, const std::function<std::int64_t(std::int64_t, std::int64_t)>& value)
      : k(k_), n(n_), plain(static_cast<std::size_t>(k_ * n_)), packed(k_ * n_) {
    for (std::int64_t i = 0; i < k; ++i) {
      for (std::int64_t column = 0; column < n; ++column) {
        const auto w = static_cast<std::int8_t>(value(i, column));
        plain[static_cast<std::size_t>(column * k + i)] = w;
        packed[((column / kPanel * (k / kGroup) + i / kGroup) * kPanel + column % kPanel) * kGroup + i % kGroup] = w;
      }
    }
  }
  std::int64_t at(std::int64_t i, std::int64_t column) const { return plain[static_cast<std::size_t>(column * k + i)]; }

  // What the `sign`ed weights of a column that meet in a lane of `groups` groups add up to, each as `count` has it.
  template <typename Count>
  std::int64_t window(std::int64_t column, std::int64_t first, int groups, int pair, int sign, Count count) const {
    std::int64_t sum = 0;
    for (int i = 0; i < 2 * groups; ++i) {
      const std::int64_t w = sign * at((first + i / 2) * kGroup + pair + i % 2, column);
      if (w > 0) sum += count(w);
    }
    return sum;
  }

  std::int64_t k, n;
  std::vector<std::int8_t> plain;
  Array<std::int8_t> packed;
};

void check_panel_sums(const Kernels& kernels, const Weights& weights, int depth) {
  PanelSums sums;
  kernels.panel_sums(weights.packed.data(), weights.k, depth, sums);
  std::int64_t lowest = 0, largest = 0;
  for (std::int64_t column = 0; column < kPanel; ++column) {
    std::int64_t sum = 0, magnitude = 0;
    for (std::int64_t i = 0; i < weights.k; ++i) {
      const std::int64_t w = weights.at(i, column);
      sum += w;
      magnitude += std::abs(w);
      lowest = std::min(lowest, w);
    }
    CHECK_EQ(sums.sum[column], sum);
    CHECK_EQ(sums.magnitude[column], magnitude);
    for (std::int64_t group = 0; group < weights.k / kGroup; group += depth) {
      for (const int pair : {0, 2}) {
        for (const int sign : {1, -1}) {
          largest = std::max(largest, weights.window(column, group, depth, pair, sign, [](auto x) { return x; }));
        }
      }
    }
  }
  CHECK_EQ(sums.lowest, lowest);
  CHECK_EQ(sums.largest_window, largest);
}

TEST_EACH_ISA(panel_sums_of_random_weights) {
  Random random(80);
  for (const int depth : {4, 8}) {
    for (const std::int64_t k : {32, 64, 96, 800, 3104}) {
      for (const std::int64_t most : {0, 1, 9, 127, 128}) {
        const check::Scope scope("depth ", depth, ", k ", k, ", magnitudes up to ", most);
        const auto value = [&](auto, auto) { return random.integer(-most, std::min<std::int64_t>(most, 127)); };
        check_panel_sums(kernels, Weights(k, kPanel, value), depth);
      }
    }
  }
}

TEST_EACH_ISA(panel_sums_of_the_largest_matrix_do_not_overflow) {
  for (const int weight : {127, -128})
    check_panel_sums(kernels, Weights(1 << 20, kPanel, [=](auto, auto) { return weight; }), 8);
}

TEST_EACH_ISA(panel_sums_see_every_window) {
  for (const int depth : {4, 8}) {
    for (std::int64_t column = 0; column < kPanel; ++column) {
      for (std::int64_t k = 0; k < 64; ++k) {
        for (const int weight : {5, -5}) {
          const check::Scope scope("depth ", depth, ", column ", column, ", k ", k, ", weight ", weight);
          const auto value = [&](std::int64_t i, std::int64_t c) {
            return c != column ? 1 - c % 3 : i == k ? weight : 0;
          };
          check_panel_sums(kernels, Weights(64, kPanel, value), depth);
        }
      }
    }
  }
}

TEST_EACH_ISA(window_norms_are_those_of_the_largest_part_of_a_lane) {
  if (kernels.window_norms == nullptr) return;
  Random random(81);
  for (const std::int64_t k : {32, 128, 160, 1024, 1184, 3104}) {
    for (const std::int64_t most : {0, 1, 30, 127}) {
      const check::Scope scope("k ", k, ", magnitudes up to ", most);
      const Weights weights(k, 48, [&](std::int64_t i, std::int64_t column) {
        if (column == 20) return i % 2 == 0 ? most : -most;
        return column == 40 ? -most : random.integer(-most, most) * random.integer(0, 1);
      });
      PackedWeights w = {};
      w.data = weights.packed.data();
      w.n = weights.n;
      w.k = k;
      Array<float> norms(weights.n / kPanel * long_windows(k), kUntouched);
      kernels.window_norms(w, norms.data());
      for (std::int64_t i = 0; i < norms.size(); ++i) {
        std::int64_t largest = 0;
        const std::int64_t panel = i / long_windows(k), first = i % long_windows(k) * kLongDepth;
        for (int column = 0; column < kPanel && (first + kLongDepth) * kGroup <= k; ++column) {
          for (const int pair : {0, 2}) {
            for (const int sign : {1, -1}) {
              largest = std::max(largest, weights.window(panel * kPanel + column, first, kLongDepth, pair, sign,
                                                         [](auto x) { return x * x; }));
            }
          }
        }
        CHECK_EQ(norms[i], static_cast<float>(std::sqrt(static_cast<double>(largest))));
      }
    }
  }
}

TEST_EACH_ISA(sum_s8_adds_every_number) {
  Random random(82);
  for (const std::int64_t n : {16, 32, 48, 768, 2304, 49152}) {
    const check::Scope scope("n ", n);
    Array<std::int8_t> x(n);
    for (const int all : {127, -128, 0}) {
      std::fill(x.begin(), x.end(), static_cast<std::int8_t>(all));
      CHECK_EQ(kernels.sum_s8(x.data(), n), all * n);
    }
    std::int64_t sum = 0;
    for (std::int8_t& number : x) sum += number = static_cast<std::int8_t>(random.integer(-128, 127));
    CHECK_EQ(kernels.sum_s8(x.data(), n), sum);
    for (std::int64_t i = 0; i < n; i += n / 16 + 1) {
      const std::int8_t before = x[i];
      x[i] = static_cast<std::int8_t>(before ^ 1);
      CHECK_EQ(kernels.sum_s8(x.data(), n), sum + x[i] - before);
      x[i] = before;
    }
  }
}

}  // namespace
}  // namespace agnews_fast
