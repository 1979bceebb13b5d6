#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "arrays.h"
#include "check.h"
#include "kernels/each_isa.h"
#include "kernels/polynomials.h"

namespace agnews_fast {
namespace {

constexpr std::int16_t kUntouchedWeight = 4321;
constexpr std::int32_t kUntouchedScore = 4321;
constexpr double kExp2Error = 3e-7;  // the polynomial's 1.1e-7, and the rounding of its last steps

using Scores = std::vector<std::int32_t>;

// Rows of the same length, `extra_stride` apart beyond their padding. Checks the bits against the specification and what
// must not be touched; returns the weights, the padding included, row after row, and the totals in `totals`.
Array<std::int16_t> run(const Kernels& kernels, const std::vector<Scores>& inputs, float scale,
                        std::int64_t extra_stride, Array<std::int32_t>& totals) {
  const auto rows = static_cast<std::int64_t>(inputs.size()), n = static_cast<std::int64_t>(inputs[0].size());
  const std::int64_t padded = (n + kLanes - 1) / kLanes * kLanes, stride = padded + extra_stride;
  const std::int64_t weights_stride = stride + extra_stride;
  // What the padding holds before must not matter.
  Array<std::int32_t> scores((rows - 1) * stride + padded, 2000000000), specified(scores.size(), -2000000000);
  for (std::int64_t row = 0; row < rows; ++row) {
    const Scores& input = inputs[static_cast<std::size_t>(row)];
    std::copy(input.begin(), input.end(), scores.data() + row * stride);
    std::copy(input.begin(), input.end(), specified.data() + row * stride);
    for (std::int64_t i = padded; i < stride && row + 1 < rows; ++i) scores[row * stride + i] = kUntouchedScore;
  }
  Array<std::int16_t> weights((rows - 1) * weights_stride + padded, kUntouchedWeight);
  Array<std::int16_t> specified_weights(weights.size(), kUntouchedWeight), packed(rows * padded);
  Array<std::int32_t> specified_totals(rows, -1);
  totals = Array<std::int32_t>(rows, -2);
  kernels.softmax_s16(scores.data(), stride, rows, n, scale, weights.data(), weights_stride, totals.data());
  scalar_kernels().softmax_s16(specified.data(), stride, rows, n, scale, specified_weights.data(), weights_stride,
                               specified_totals.data());
  CHECK_SAME_BITS(weights.data(), specified_weights.data(), weights.size());
  CHECK_SAME_BITS(totals.data(), specified_totals.data(), rows);
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t i = padded; i < stride && row + 1 < rows; ++i) {
      CHECK_EQ(scores[row * stride + i], kUntouchedScore);
    }
    for (std::int64_t i = padded; i < weights_stride && row + 1 < rows; ++i) {
      CHECK_EQ(weights[row * weights_stride + i], kUntouchedWeight);
    }
    std::copy_n(weights.data() + row * weights_stride, padded, packed.data() + row * padded);
  }
  return packed;
}

// Compares with the definition in double precision, and checks the promise that sums of products fit 32 bits.
void check_softmax(const Kernels& kernels, const std::vector<Scores>& inputs, float scale,
                   std::int64_t extra_stride = 0) {
  const auto rows = static_cast<std::int64_t>(inputs.size()), n = static_cast<std::int64_t>(inputs[0].size());
  Array<std::int32_t> totals(rows);
  const Array<std::int16_t> weights = run(kernels, inputs, scale, extra_stride, totals);
  const std::int64_t padded = weights.size() / rows;
  for (std::int64_t row = 0; row < rows; ++row) {
    const check::Scope scope("row ", row);
    const Scores& input = inputs[static_cast<std::size_t>(row)];
    const std::int64_t highest = *std::max_element(input.begin(), input.end());
    std::vector<double> e;
    double sum = 0.0;
    for (const std::int64_t score : input) {
      e.push_back(std::exp(static_cast<double>(score - highest) * scale));
      sum += e.back();
    }
    const double factor = std::min<double>(kLargestWeight, kWeightSum / sum);
    // Of the sum: a lane adds n / 16 terms, the tree 4; the quotient and the product round once each.
    const double rounding = (static_cast<double>(padded / kLanes) + 6.0) * kUnitRoundoff;
    std::int64_t total = 0;
    for (std::int64_t i = 0; i < padded; ++i) {
      const check::Scope element("weight ", i);
      const std::int16_t weight = weights[row * padded + i];
      if (i >= n) {
        CHECK_EQ(weight, 0);
        continue;
      }
      // The difference, log2(e) times the scale, log2(e) itself and their product are rounded: 4 u of the exponent.
      const double exact = e[static_cast<std::size_t>(i)] * factor;
      const double exponent = std::fabs(std::log(std::max(e[static_cast<std::size_t>(i)], 1e-30)));
      CHECK_NEAR(weight, exact, 0.5 + exact * (1.01 * (rounding + kExp2Error) + 4.1 * kUnitRoundoff * exponent));
      CHECK(weight >= 0);
      total += weight;
    }
    CHECK_EQ(totals[row], total);
    CHECK(total > 0);
    CHECK(total * kValueLevels < std::int64_t{1} << 31);
  }
}

void for_each_length(const std::function<void(std::int64_t)>& visit) {
  for (std::int64_t n = 1; n <= 49; ++n) visit(n);
  for (const std::int64_t n : {63, 64, 65, 511, 512}) visit(n);
}

TEST_EACH_ISA(softmax_s16_of_random_scores) {
  Random random(90);
  for (const double spread : {1e-6, 0.01, 1.0, 10.0, 80.0, 1e4}) {
    for_each_length([&](std::int64_t n) {
      const check::Scope scope("n ", n, ", spread ", spread);
      const std::int64_t most = random.integer(0, 1) == 0 ? 100 : (1 << 30) - 1;
      std::vector<Scores> rows(static_cast<std::size_t>(random.integer(1, 14)));
      for (Scores& row : rows) {
        for (std::int64_t i = 0; i < n; ++i) row.push_back(static_cast<std::int32_t>(random.integer(-most, most)));
      }
      check_softmax(kernels, rows, static_cast<float>(spread / static_cast<double>(most)),
                    random.integer(0, 1) * kLanes);
    });
  }
}

TEST_EACH_ISA(softmax_s16_of_identical_scores_is_even) {
  for (const std::int32_t score : {0, 1, -1, (1 << 30) - 1, -(1 << 30) + 1}) {
    for_each_length([&](std::int64_t n) {
      for (const float scale : {0.0f, 1e-40f, 1e-7f, 1.0f, 1e38f}) {
        const check::Scope scope("n ", n, ", score ", score, ", scale ", scale);
        const std::vector<Scores> rows(3, Scores(static_cast<std::size_t>(n), score));
        check_softmax(kernels, rows, scale);
        Array<std::int32_t> totals(3);
        const Array<std::int16_t> weights = run(kernels, rows, scale, 0, totals);
        for (std::int64_t i = 0; i < n; ++i) CHECK_EQ(weights[i], weights[0]);
      }
    });
  }
}

TEST_EACH_ISA(softmax_s16_with_one_score_far_above_the_rest) {
  for_each_length([&](std::int64_t n) {
    for (const std::int64_t at : {std::int64_t{0}, n / 2, n - 1}) {
      const check::Scope scope("n ", n, ", highest at ", at);
      Scores scores(static_cast<std::size_t>(n), -(1 << 30) + 1);
      scores[static_cast<std::size_t>(at)] = (1 << 30) - 1;
      for (const float scale : {1e-7f, 1.0f, 1e20f}) check_softmax(kernels, {scores}, scale);
      Array<std::int32_t> totals(1);
      const Array<std::int16_t> weights = run(kernels, {scores}, 1e-7f, 0, totals);
      CHECK_EQ(weights[at], static_cast<std::int16_t>(kLargestWeight));
      CHECK_EQ(totals[0], weights[at]);
    }
  });
}

TEST_EACH_ISA(softmax_s16_is_exact_enough_over_the_whole_range_of_weights) {
  // 512 exponents at a time, from 0 down to where all weights are 0.
  for (int block = 0; block < 20; ++block) {
    const check::Scope scope("block ", block);
    Scores scores = {0};
    for (int i = 1; i < 512; ++i) scores.push_back(-(block * 512 + i));
    check_softmax(kernels, {scores}, 0.00175f);
  }
}

TEST_EACH_ISA(softmax_s16_of_the_longest_rows_keeps_sums_of_products_in_32_bits) {
  // Where most is rounded up: just above n halves.
  for (const std::int64_t n : {65536, 65333, 57647, 51578, 32667, 513, 100, 16, 15, 14}) {
    const check::Scope scope("n ", n);
    check_softmax(kernels, {Scores(static_cast<std::size_t>(n), 7)}, 1.0f);
  }
  Random random(91);
  Scores scores;
  for (int i = 0; i < 65536; ++i) scores.push_back(static_cast<std::int32_t>(random.integer(-1000, 1000)));
  for (const float scale : {1e-5f, 1e-3f, 1e-1f}) check_softmax(kernels, {scores}, scale);
}

TEST_EACH_ISA(softmax_s16_with_a_scale_that_is_not_finite_has_no_weights) {
  for (const float scale : {INFINITY, NAN, -NAN, 3e38f}) {
    for (const std::int64_t n : {1, 5, 16, 33}) {
      const check::Scope scope("n ", n, ", scale ", scale);
      Scores scores(static_cast<std::size_t>(n), 0);
      scores[0] = 3;
      Array<std::int32_t> totals(2);
      const Array<std::int16_t> weights = run(kernels, {scores, scores}, scale, 0, totals);
      CHECK(std::all_of(weights.begin(), weights.end(), [](std::int16_t w) { return w == 0; }));
      CHECK_EQ(totals[0], 0);
      CHECK_EQ(totals[1], 0);
    }
  }
}

}  // namespace
}  // namespace agnews_fast
