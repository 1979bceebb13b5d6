#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "arrays.h"
#include "check.h"
#include "kernels/each_isa.h"
#include "model/overflow.h"

namespace agnews_fast {
namespace {

struct Sizes {
  std::int64_t rows, n, k;
  int levels, depth;
};

struct Outlier {
  std::int64_t k, column;  // of the whole matrix
  std::int32_t value;
};

// One product in plain form, and packed as kernels.h lays it out. pack() after the plain form has been filled in.
struct Problem {
  explicit Problem(const Sizes& s, std::int64_t wide_channels = 4)
      : sizes(s),
        wide(wide_channels),
        activations(static_cast<std::size_t>(s.rows * s.k)),
        weights(static_cast<std::size_t>(s.k * s.n)),
        wide_activations(static_cast<std::size_t>(s.rows * wide)),
        wide_weights(static_cast<std::size_t>(s.n * wide)),
        packed_rows(s.rows * s.k),
        row_scale(s.rows, 1.0f),
        zero_point(s.rows),
        packed_weights(s.k * s.n),
        column_scale(s.n, 1.0f),
        bias(s.n),
        column_sum(s.n),
        outlier_begin(s.n / kPanel + 1),
        outlier_k(0),
        outlier_column(0),
        outlier_value(0),
        row_norm((s.rows + kRowTile - 1) / kRowTile * long_windows(s.k)),
        weight_norm(s.n / kPanel * long_windows(s.k)),
        packed_wide(s.rows * wide),
        packed_wide_weights(s.n * wide) {}

  std::uint8_t& activation(std::int64_t row, std::int64_t k) {
    return activations[static_cast<std::size_t>(row * sizes.k + k)];
  }
  std::int8_t& weight(std::int64_t k, std::int64_t column) {
    return weights[static_cast<std::size_t>(column * sizes.k + k)];
  }

  // The window of 2 * depth weights that meet in one 16-bit lane: `visit` gets each one.
  void for_each_window(const std::function<void(const std::vector<std::int8_t*>&)>& visit) {
    for (std::int64_t column = 0; column < sizes.n; ++column) {
      for (std::int64_t block = 0; block < sizes.k; block += kGroup * sizes.depth) {
        for (int pair = 0; pair < kGroup; pair += 2) {
          std::vector<std::int8_t*> window;
          for (int d = 0; d < sizes.depth; ++d) {
            for (int i = 0; i < 2; ++i) window.push_back(&weight(block + d * kGroup + pair + i, column));
          }
          visit(window);
        }
      }
    }
  }

  void pack() {
    const auto [rows, n, k, levels, depth] = sizes;
    for (std::int64_t row = 0; row < rows; ++row) {
      const std::int64_t tile = row / kRowTile, tile_rows = std::min<std::int64_t>(kRowTile, rows - tile * kRowTile);
      for (std::int64_t i = 0; i < k; ++i) {
        const std::int64_t within = (i / kGroup * tile_rows + row % kRowTile) * kGroup + i % kGroup;
        packed_rows[tile * kRowTile * k + within] = activation(row, i);
      }
      for (std::int64_t i = 0; i < wide; ++i) {
        const std::int64_t within = (i / 2 * tile_rows + row % kRowTile) * 2 + i % 2;
        packed_wide[tile * kRowTile * wide + within] = wide_activations[static_cast<std::size_t>(row * wide + i)];
      }
    }
    for (std::int64_t column = 0; column < n; ++column) {
      column_sum[column] = 0;
      for (std::int64_t i = 0; i < k; ++i) {
        const std::int64_t group = column / kPanel * (k / kGroup) + i / kGroup;
        packed_weights[(group * kPanel + column % kPanel) * kGroup + i % kGroup] = weight(i, column);
        column_sum[column] += weight(i, column);
      }
      for (std::int64_t i = 0; i < wide; ++i) {
        const std::int64_t pair = column / kPanel * (wide / 2) + i / 2;
        packed_wide_weights[(pair * kPanel + column % kPanel) * 2 + i % 2] =
            wide_weights[static_cast<std::size_t>(column * wide + i)];
      }
    }
    std::stable_sort(outliers.begin(), outliers.end(),
                     [](const Outlier& a, const Outlier& b) { return a.column / kPanel < b.column / kPanel; });
    const auto count = static_cast<std::int64_t>(outliers.size());
    outlier_k = Array<std::int32_t>(count);
    outlier_column = Array<std::int32_t>(count);
    outlier_value = Array<std::int32_t>(count);
    std::fill(outlier_begin.begin(), outlier_begin.end(), 0);
    for (std::int64_t i = 0; i < count; ++i) {
      const Outlier& outlier = outliers[static_cast<std::size_t>(i)];
      outlier_k[i] = static_cast<std::int32_t>(outlier.k);
      outlier_column[i] = static_cast<std::int32_t>(outlier.column % kPanel);
      outlier_value[i] = outlier.value;
      column_sum[outlier.column] += outlier.value;
      for (std::int64_t panel = outlier.column / kPanel; panel < n / kPanel; ++panel) ++outlier_begin[panel + 1];
    }
    check_weights(scalar_kernels(), right(), count, levels, "weights");
    std::fill(weight_norm.begin(), weight_norm.end(), 0.0f);
    for (std::int64_t column = 0; column < n; ++column) {
      for (std::int64_t i = 0; i < k / (kGroup * kLongDepth); ++i) {
        float& norm = weight_norm[column / kPanel * long_windows(k) + i];
        for (const int sign : {1, -1}) {
          const auto part = [&](std::int64_t at) { return std::max(sign * weight(at, column), 0); };
          norm = std::max(norm, static_cast<float>(std::sqrt(long_window_squares(i, part))));
        }
      }
    }
    std::fill(row_norm.begin(), row_norm.end(), 0.0f);
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t i = 0; i < k / (kGroup * kLongDepth); ++i) {
        const double squares = long_window_squares(i, [&](std::int64_t at) { return activation(row, at); });
        float& norm = row_norm[row / kRowTile * long_windows(k) + i];
        norm = std::max(norm, static_cast<float>(std::sqrt(squares)));
      }
    }
    // The exact sums, by definition.
    sums.assign(static_cast<std::size_t>(rows * n), 0);
    for (std::int64_t row = 0; row < rows; ++row) {
      const std::uint8_t* u = activations.data() + row * k;
      for (std::int64_t column = 0; column < n; ++column) {
        const std::int8_t* w = weights.data() + column * k;
        std::int64_t sum = 0;
        for (std::int64_t i = 0; i < k; ++i) sum += (std::int64_t{u[i]} - zero_point[row]) * w[i];
        for (std::int64_t i = 0; i < wide; ++i) {
          sum += std::int64_t{wide_activations[static_cast<std::size_t>(row * wide + i)]} *
                 wide_weights[static_cast<std::size_t>(column * wide + i)];
        }
        sums[static_cast<std::size_t>(row * n + column)] = sum;
      }
      for (const Outlier& outlier : outliers) {
        sums[static_cast<std::size_t>(row * n + outlier.column)] +=
            (std::int64_t{u[outlier.k]} - zero_point[row]) * outlier.value;
      }
    }
  }

  PackedRows left() const {
    return {packed_rows.data(), row_scale.data(),  zero_point.data(), sizes.rows, sizes.k,
            row_norm.data(),    packed_wide.data()};
  }
  PackedWeights right() const {
    return {packed_weights.data(),
            column_scale.data(),
            bias.data(),
            column_sum.data(),
            outlier_begin.data(),
            outlier_k.data(),
            outlier_column.data(),
            outlier_value.data(),
            sizes.n,
            sizes.k,
            sizes.depth,
            weight_norm.data(),
            packed_wide_weights.data(),
            wide};
  }

  Sizes sizes;
  std::int64_t wide;
  std::vector<std::uint8_t> activations;       // (rows, k)
  std::vector<std::int8_t> weights;            // (n, k)
  std::vector<std::int16_t> wide_activations;  // (rows, wide)
  std::vector<std::int16_t> wide_weights;      // (n, wide)
  std::vector<Outlier> outliers;
  std::vector<std::int64_t> sums;  // (rows, n)

  Array<std::uint8_t> packed_rows;
  Array<float> row_scale;
  Array<std::int32_t> zero_point;
  Array<std::int8_t> packed_weights;
  Array<float> column_scale, bias;
  Array<std::int32_t> column_sum, outlier_begin, outlier_k, outlier_column, outlier_value;
  Array<float> row_norm, weight_norm;
  Array<std::int16_t> packed_wide, packed_wide_weights;
};

// Random weights that use up the bound of many windows, random activations and zero points.
void randomize(Problem& problem, Random& random) {
  const int levels = problem.sizes.levels;
  for (std::uint8_t& u : problem.activations) u = static_cast<std::uint8_t>(random.integer(0, levels));
  for (std::int32_t& zero : problem.zero_point) zero = static_cast<std::int32_t>(random.integer(0, levels));
  problem.for_each_window([&](const std::vector<std::int8_t*>& window) {
    std::int64_t positive = 32767 / levels, negative = 32767 / levels;
    for (std::int8_t* w : window) {
      *w = static_cast<std::int8_t>(
          random.integer(-std::min<std::int64_t>(127, negative), std::min<std::int64_t>(127, positive)));
      (*w > 0 ? positive : negative) -= std::abs(*w);
    }
  });
  for (std::int16_t& x : problem.wide_activations) {
    x = static_cast<std::int16_t>(random.integer(-levels * kWideSteps, levels * kWideSteps));
  }
  for (std::int16_t& w : problem.wide_weights) w = static_cast<std::int16_t>(random.integer(-1000, 1000));
}

void randomize_scales(Problem& problem, Random& random) {
  for (float& scale : problem.row_scale) scale = static_cast<float>(std::exp(random.uniform(-7, -2)));
  for (float& scale : problem.column_scale) scale = static_cast<float>(std::exp(random.uniform(-9, -4)));
  for (float& bias : problem.bias) bias = static_cast<float>(random.uniform(-2, 2));
}

double gelu(double x) { return 0.5 * x * std::erfc(-x / std::sqrt(2.0)); }
// The polynomial's absolute error on the clamped range; beyond, Phi is off by 3.2e-5 at most and x by a rounding.
double gelu_error(double x) { return 1.9e-4 + 1e-7 * std::fabs(x); }
constexpr double kGeluSlope = 1.13;  // the steepest that gelu gets

// Runs some panels and compares every element of the output, and what must not be touched around it.
void check_panels(const Kernels& kernels, const Problem& problem, std::int64_t begin, std::int64_t end,
                  Activation activation, std::int64_t extra_stride) {
  const auto [rows, n, k, levels, depth] = problem.sizes;
  const check::Scope scope("rows ", rows, ", n ", n, ", k ", k, ", levels ", levels, ", depth ", depth, ", panels ",
                           begin, " to ", end, ", activation ", static_cast<int>(activation), ", extra stride ",
                           extra_stride);
  const std::int64_t stride = n + extra_stride, size = (rows - 1) * stride + n;
  Array<float> out(size, kUntouched), specified(size, kUntouched);
  kernels.gemm(problem.left(), problem.right(), begin, end, activation, out.data(), stride);
  scalar_kernels().gemm(problem.left(), problem.right(), begin, end, activation, specified.data(), stride);
  CHECK_SAME_BITS(out.data(), specified.data(), size);
  for (std::int64_t i = 0; i < size; ++i) {
    const std::int64_t row = i / stride, column = i % stride;
    if (column < begin * kPanel || column >= end * kPanel) {
      CHECK_EQ(out[i], kUntouched);
      continue;
    }
    const double product = static_cast<double>(problem.sums[static_cast<std::size_t>(row * n + column)]) *
                           problem.row_scale[row] * problem.column_scale[column];
    const double y = product + problem.bias[column];
    // The conversion to float and the product of the scales round by u each, the fma by u of its result.
    double error = 1.01 * kUnitRoundoff * (2.0 * std::fabs(product) + std::fabs(y)), expected = y;
    if (activation == Activation::kRelu) expected = std::max(y, 0.0);
    if (activation == Activation::kGelu) {
      expected = gelu(y);
      error = kGeluSlope * error + gelu_error(y);
    }
    CHECK_NEAR(out[i], expected, error);
  }
}

// Scales of 1 and no bias: the output is the integer, rounded to float.
void check_integers(const Kernels& kernels, const Problem& problem) {
  const auto [rows, n, k, levels, depth] = problem.sizes;
  const check::Scope scope("rows ", rows, ", n ", n, ", k ", k, ", levels ", levels, ", depth ", depth);
  Array<float> out(rows * n, kUntouched), expected(rows * n);
  kernels.gemm(problem.left(), problem.right(), 0, n / kPanel, Activation::kNone, out.data(), n);
  for (std::int64_t i = 0; i < rows * n; ++i) {
    expected[i] = static_cast<float>(problem.sums[static_cast<std::size_t>(i)]);
  }
  CHECK_SAME_BITS(out.data(), expected.data(), rows * n);
}

// Both of the above for one random problem.
void check_random(const Kernels& kernels, const Sizes& sizes, Random& random, Activation activation,
                  std::int64_t extra_stride = 0) {
  Problem problem(sizes);
  randomize(problem, random);
  const std::int64_t outliers = random.integer(0, 20);
  for (std::int64_t i = 0; i < outliers; ++i) {
    problem.outliers.push_back({random.integer(0, sizes.k - 1), random.integer(0, sizes.n - 1),
                                static_cast<std::int32_t>(random.integer(-3000, 3000))});
  }
  problem.pack();
  check_integers(kernels, problem);
  randomize_scales(problem, random);
  check_panels(kernels, problem, 0, sizes.n / kPanel, activation, extra_stride);
}

constexpr Activation kActivations[] = {Activation::kNone, Activation::kGelu, Activation::kRelu};
constexpr std::pair<int, int> kLevelsAndDepths[] = {{127, 8}, {127, 4}, {255, 8}, {255, 4}};

TEST_EACH_ISA(gemm_with_every_number_of_rows) {
  Random random(20);
  for (const std::int64_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 48, 97}) {
    for (const auto& [levels, depth] : kLevelsAndDepths) {
      for (const Activation activation : kActivations) {
        check_random(kernels, {rows, 48, 96, levels, depth}, random, activation, rows % 3 * kLanes);
      }
    }
  }
}

TEST_EACH_ISA(gemm_with_every_range_of_panels) {
  Random random(21);
  int options = 0;
  for (const std::int64_t panels : {1, 2, 3, 4, 5, 7, 8, 11}) {
    const auto& [levels, depth] = kLevelsAndDepths[panels % 4];
    Problem problem({7, panels * kPanel, 64, levels, depth});
    randomize(problem, random);
    for (std::int64_t panel = 0; panel < panels; panel += 2) {
      problem.outliers.push_back({random.integer(0, 63), panel * kPanel + 15, 1000});
    }
    problem.pack();
    randomize_scales(problem, random);
    for (std::int64_t begin = 0; begin <= panels; ++begin) {
      for (std::int64_t end = begin; end <= panels; ++end) {
        ++options;
        check_panels(kernels, problem, begin, end, kActivations[options % 3], options % 2 * 32);
      }
    }
  }
}

TEST_EACH_ISA(gemm_with_long_rows) {
  Random random(22);
  int options = 0;
  for (const std::int64_t k : {32, 64, 96, 160, 800, 1568, 3104}) {
    for (const std::int64_t rows : {1, 5, 6, 13}) {
      ++options;
      const auto& [levels, depth] = kLevelsAndDepths[options % 4];
      check_random(kernels, {rows, 32, k, levels, depth}, random, kActivations[options % 3]);
    }
  }
}

TEST_EACH_ISA(gemm_with_many_columns) {
  Random random(23);
  int options = 0;
  for (const std::int64_t n : {16, 80, 144, 784, 3104}) {
    ++options;
    const auto& [levels, depth] = kLevelsAndDepths[options % 4];
    check_random(kernels, {7, n, 64, levels, depth}, random, kActivations[options % 3], 16);
  }
}

using Fill = void (*)(const std::vector<std::int8_t*>& window, std::int64_t bound, std::int64_t index);

// The bound in as few weights as possible, from one end of the window.
void dense(const std::vector<std::int8_t*>& window, std::int64_t bound, int sign, bool backwards) {
  for (std::size_t i = 0; i < window.size(); ++i) {
    const std::int64_t size = std::min<std::int64_t>(127, bound);
    *window[backwards ? window.size() - 1 - i : i] = static_cast<std::int8_t>(sign * size);
    bound -= size;
  }
}

constexpr std::pair<const char*, Fill> kExtremeWeights[] = {
    {"positive, first", [](const auto& window, std::int64_t bound, std::int64_t) { dense(window, bound, 1, false); }},
    {"positive, last", [](const auto& window, std::int64_t bound, std::int64_t) { dense(window, bound, 1, true); }},
    {"negative, first", [](const auto& window, std::int64_t bound, std::int64_t) { dense(window, bound, -1, false); }},
    {"negative, last", [](const auto& window, std::int64_t bound, std::int64_t) { dense(window, bound, -1, true); }},
    {"alternating windows", [](const auto& window, std::int64_t bound,
                               std::int64_t index) { dense(window, bound, index % 2 == 0 ? 1 : -1, index % 3 == 0); }},
    {"both bounds in one window",
     [](const auto& window, std::int64_t bound, std::int64_t) {
       // Negatives go behind the positives: the running sum climbs to the bound first.
       dense(window, bound, 1, false);
       std::int64_t left = bound;
       for (std::size_t i = window.size(); i-- > 0 && *window[i] == 0;) {
         const std::int64_t size = std::min<std::int64_t>(127, left);
         *window[i] = static_cast<std::int8_t>(-size);
         left -= size;
       }
     }},
    {"spread evenly",
     [](const auto& window, std::int64_t bound, std::int64_t) {
       const auto size = static_cast<std::int64_t>(window.size());
       for (std::int8_t* w : window) *w = static_cast<std::int8_t>(std::min<std::int64_t>(127, bound / size));
     }},
};

TEST_EACH_ISA(gemm_at_the_bound_of_16_bits) {
  Random random(24);
  for (const auto& [levels, depth] : kLevelsAndDepths) {
    for (const auto& [name, fill] : kExtremeWeights) {
      for (const std::int64_t k : {32, 800, 3104}) {
        if (k == 3104 && depth == 4) continue;
        const check::Scope scope("weights ", name);
        // Rows: all at `levels`, zeros, extremes at random; each with the zero points 0 and `levels`.
        Problem problem({k == 800 ? 13 : 7, 32, k, levels, depth});
        std::int64_t index = 0;
        problem.for_each_window(
            [&](const std::vector<std::int8_t*>& window) { fill(window, 32767 / levels, index++); });
        for (std::int64_t row = 0; row < problem.sizes.rows; ++row) {
          problem.zero_point[row] = row / 3 % 2 == 0 ? 0 : levels;
          for (std::int64_t i = 0; i < k; ++i) {
            const bool high = row % 3 == 0 || (row % 3 == 2 && random.integer(0, 1) == 1);
            problem.activation(row, i) = static_cast<std::uint8_t>(high ? levels : 0);
          }
        }
        problem.pack();
        check_integers(kernels, problem);
      }
    }
  }
}

TEST_EACH_ISA(gemm_with_activations_that_seek_the_worst_sum) {
  // u = levels where the weight is positive (or, in odd rows, negative), 0 elsewhere: the sums go as far as they can.
  for (const auto& [levels, depth] : kLevelsAndDepths) {
    for (const auto& [name, fill] : kExtremeWeights) {
      const check::Scope scope("weights ", name);
      Problem problem({6, 16, 320, levels, depth});
      std::int64_t index = 0;
      problem.for_each_window([&](const std::vector<std::int8_t*>& window) { fill(window, 32767 / levels, index++); });
      for (std::int64_t row = 0; row < 6; ++row) {
        problem.zero_point[row] = row < 3 ? 0 : levels;
        for (std::int64_t k = 0; k < 320; ++k) {
          const int w = problem.weight(k, 3 * row);
          problem.activation(row, k) = static_cast<std::uint8_t>((row % 2 == 0 ? w > 0 : w < 0) ? levels : 0);
        }
      }
      problem.pack();
      check_integers(kernels, problem);
    }
  }
}

TEST_EACH_ISA(gemm_of_long_windows_below_and_above_the_bound_of_16_bits) {
  // Constant rows and columns reach the product of their norms: 64 x 5 x 102 = 32640 fits 16 bits, 64 x 5 x 103 does not.
  // So do columns of both signs with rows that are 0 where the other sign is: 32 x 10 x 102, 32 x 10 x 103.
  Random random(27);
  for (const std::int64_t k : {128, 160, 256, 448, 1152}) {
    for (const std::int64_t rows : {1, 2, 3, 4, 5, 6, 13}) {
      for (const int w : {1, 5, -5, 6, 10, -10, 16}) {
        for (const int u : {31, 32, 85, 86, 102, 103, 127}) {
          for (const bool both_signs : {false, true}) {
            const check::Scope scope("weights ", w, ", activations ", u, both_signs ? ", both signs" : "");
            Problem problem({rows, 48, k, 127, 8});
            // Other columns and the other rows are small.
            for (std::int8_t& weight : problem.weights) weight = static_cast<std::int8_t>(random.integer(-3, 3));
            for (std::uint8_t& level : problem.activations) level = static_cast<std::uint8_t>(random.integer(0, 9));
            for (std::int64_t i = 0; i < k; ++i) {
              const bool other = both_signs && i % 2 == 1;
              problem.weight(i, 21) = static_cast<std::int8_t>(other ? -w : w);
              problem.activation(rows - 1, i) = static_cast<std::uint8_t>(other ? 0 : u);
            }
            problem.zero_point[0] = 8;
            problem.pack();
            check_integers(kernels, problem);
          }
        }
      }
    }
  }
}

TEST_EACH_ISA(gemm_needs_no_norms) {
  Random random(28);
  Problem problem({7, 32, 288, 127, 8});
  randomize(problem, random);
  problem.pack();
  Array<float> out(7 * 32), expected(7 * 32);
  scalar_kernels().gemm(problem.left(), problem.right(), 0, 2, Activation::kNone, expected.data(), 32);
  for (const bool left : {false, true}) {
    PackedRows rows = problem.left();
    PackedWeights weights = problem.right();
    (left ? rows.window_norm : weights.window_norm) = nullptr;
    kernels.gemm(rows, weights, 0, 2, Activation::kNone, out.data(), 32);
    CHECK_SAME_BITS(out.data(), expected.data(), out.size());
  }
}

TEST_EACH_ISA(gemm_adds_the_outliers) {
  Random random(25);
  for (const auto& [levels, depth] : kLevelsAndDepths) {
    for (const std::int64_t rows : {1, 6, 11}) {
      const std::int64_t n = 80, k = 96;
      Problem problem({rows, n, k, levels, depth});
      randomize(problem, random);
      for (int i = 0; i < 500; ++i) {  // crowded into one panel, several at one place among them
        problem.outliers.push_back({random.integer(0, k - 1), 32 + random.integer(0, 15),
                                    static_cast<std::int32_t>(random.integer(-1000, 1000))});
      }
      problem.outliers.push_back({k - 1, n - 1, 32767});
      problem.outliers.push_back({k - 1, n - 1, -32767});
      problem.outliers.push_back({k - 1, n - 1, -32767});
      problem.outliers.push_back({0, 0, 32767});
      problem.pack();
      check_integers(kernels, problem);
      for (std::uint8_t& u : problem.activations) u = static_cast<std::uint8_t>(levels);
      problem.pack();
      check_integers(kernels, problem);
      randomize_scales(problem, random);
      check_panels(kernels, problem, 1, 5, Activation::kGelu, 16);
    }
  }
}

TEST_EACH_ISA(gemm_adds_the_wide_channels) {
  Random random(29);
  int options = 0;
  for (const std::int64_t wide : {0, 2, 6, 16}) {
    for (const std::int64_t rows : {1, 2, 3, 4, 5, 6, 11}) {
      const check::Scope scope("wide channels ", wide);
      const auto& [levels, depth] = kLevelsAndDepths[++options % 4];
      Problem problem({rows, 80, 64, levels, depth}, wide);
      randomize(problem, random);
      problem.pack();
      check_integers(kernels, problem);
      randomize_scales(problem, random);
      check_panels(kernels, problem, 1, 5, kActivations[options % 3], 16);
    }
  }
}

TEST_EACH_ISA(gemm_at_the_bound_of_32_bits) {
  for (const int levels : {127, 255}) {
    Problem problem({7, 16, 32, levels, 8});
    std::int64_t left = (std::int64_t{1} << 30) / levels;
    for (std::int64_t i = 0; left > 0; ++i) {
      const std::int64_t size = std::min<std::int64_t>(32767, left);
      problem.outliers.push_back({i % 32, 7, static_cast<std::int32_t>(size)});
      problem.outliers.push_back({i % 32, 8, static_cast<std::int32_t>(-size)});
      left -= size;
    }
    // Wide channels reach their own bound in the same columns; in row 6 they are 0.
    const std::int64_t wide_bound = (std::int64_t{1} << 29) / (levels * kWideSteps + 1);
    for (std::int64_t i = 0; i < 2; ++i) {
      const auto half = static_cast<std::int16_t>(wide_bound / 2);
      problem.wide_weights[static_cast<std::size_t>(7 * problem.wide + 2 * i)] = half;
      problem.wide_weights[static_cast<std::size_t>(8 * problem.wide + 2 * i)] = static_cast<std::int16_t>(-half);
    }
    for (std::int64_t row = 0; row < 7; ++row) {
      problem.zero_point[row] = row < 4 ? 0 : levels;
      for (std::int64_t i = 0; i < 32; ++i) {
        problem.activation(row, i) = static_cast<std::uint8_t>(row % 2 == 0 ? levels : 0);
      }
      for (std::int64_t i = 0; i < problem.wide; ++i) {
        const int sign = row == 6 ? 0 : row < 4 ? 1 : -1;
        problem.wide_activations[static_cast<std::size_t>(row * problem.wide + i)] =
            static_cast<std::int16_t>(sign * levels * kWideSteps);
      }
    }
    problem.pack();
    check_integers(kernels, problem);
  }
}

// All activations zero: the output is the activation function of the bias.
TEST_EACH_ISA(gemm_applies_the_activation_function_over_its_whole_range) {
  const std::int64_t n = 3104;
  Problem problem({2, n, 32, 127, 8});
  for (std::int64_t i = 0; i < n; ++i) {
    problem.bias[i] = static_cast<float>((static_cast<double>(i) / static_cast<double>(n - 1) - 0.5) * 24.0);
  }
  const float special[] = {0.0f, -0.0f, 1e-40f, -1e-40f, 1e-20f, -1e-20f, 5.2f, -5.2f, 1e4f, -1e4f, 1e30f, -1e30f};
  std::copy(std::begin(special), std::end(special), problem.bias.begin());
  problem.row_scale[1] = 0.0f;  // as of a row without a range
  problem.pack();
  for (const Activation activation : kActivations) check_panels(kernels, problem, 0, n / kPanel, activation, 0);
}

TEST_EACH_ISA(gemm_keeps_a_row_that_is_no_number_and_the_others) {
  Random random(28);
  for (const Activation activation : kActivations) {
    for (std::int64_t rows = 1; rows <= 7; ++rows) {
      const check::Scope scope("rows ", rows, ", activation ", static_cast<int>(activation));
      Problem problem({rows, 80, 64, 127, 8});
      randomize(problem, random);
      problem.pack();
      randomize_scales(problem, random);
      Array<float> before(rows * 80), after(rows * 80);
      kernels.gemm(problem.left(), problem.right(), 0, 5, activation, before.data(), 80);
      problem.row_scale[rows - 1] = NAN;
      kernels.gemm(problem.left(), problem.right(), 0, 5, activation, after.data(), 80);
      CHECK_SAME_BITS(after.data(), before.data(), (rows - 1) * 80);
      for (std::int64_t i = (rows - 1) * 80; i < rows * 80; ++i) CHECK(std::isnan(after[i]));
    }
  }
}

TEST_EACH_ISA(relu_of_negative_zero_is_zero) {
  Problem problem({1, 16, 32, 127, 8});
  problem.activation(0, 0) = 1;
  for (std::int64_t column = 0; column < 16; ++column) problem.weight(0, column) = -1;
  problem.pack();
  // -1 times a scale that underflows, added to -0.
  problem.row_scale[0] = 1e-30f;
  std::fill(problem.column_scale.begin(), problem.column_scale.end(), 1e-30f);
  std::fill(problem.bias.begin(), problem.bias.end(), -0.0f);
  Array<float> out(16, kUntouched);
  const Array<float> negative(16, -0.0f), zeros(16);
  kernels.gemm(problem.left(), problem.right(), 0, 1, Activation::kNone, out.data(), 16);
  CHECK_SAME_BITS(out.data(), negative.data(), 16);
  kernels.gemm(problem.left(), problem.right(), 0, 1, Activation::kRelu, out.data(), 16);
  CHECK_SAME_BITS(out.data(), zeros.data(), 16);
}

}  // namespace
}  // namespace agnews_fast
