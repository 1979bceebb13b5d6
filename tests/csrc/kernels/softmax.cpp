#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "arrays.h"
#include "check.h"
#include "kernels/each_isa.h"

namespace agnews_fast {
namespace {

// The polynomial's error is 1.9e-9; what remains is the rounding of its last steps.
constexpr double kExpError = 2e-7;
constexpr double kExpFloor = 1.7e-38;  // what exp gives far below, see polynomials.h

// Rows of the same length, `extra_stride` apart beyond their padding.
void check_softmax(const Kernels& kernels, const std::vector<std::vector<float>>& inputs,
                   std::int64_t extra_stride = 0) {
  const auto rows = static_cast<std::int64_t>(inputs.size()), n = static_cast<std::int64_t>(inputs[0].size());
  const std::int64_t padded = (n + kLanes - 1) / kLanes * kLanes, stride = padded + extra_stride;
  // What the padding holds before must not matter.
  Array<float> scores((rows - 1) * stride + padded, NAN), specified(scores.size(), 1e30f);
  Array<float> inverse(rows, NAN), specified_inverse(rows, NAN);
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::vector<float>& input = inputs[static_cast<std::size_t>(row)];
    std::copy(input.begin(), input.end(), scores.data() + row * stride);
    std::copy(input.begin(), input.end(), specified.data() + row * stride);
    for (std::int64_t i = padded; i < stride && row + 1 < rows; ++i) {
      scores[row * stride + i] = specified[row * stride + i] = kUntouched;
    }
  }
  kernels.softmax(scores.data(), stride, rows, n, inverse.data());
  scalar_kernels().softmax(specified.data(), stride, rows, n, specified_inverse.data());
  CHECK_SAME_BITS(scores.data(), specified.data(), scores.size());
  CHECK_SAME_BITS(inverse.data(), specified_inverse.data(), rows);

  const Array<float> zeros(kLanes);
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::vector<float>& input = inputs[static_cast<std::size_t>(row)];
    const float* got = scores.data() + row * stride;
    const float highest = *std::max_element(input.begin(), input.end());
    double sum = 0.0;
    for (std::int64_t i = 0; i < n; ++i) {
      // The difference is rounded to float, as the contract has it.
      const double exact = std::exp(static_cast<double>(input[static_cast<std::size_t>(i)] - highest));
      CHECK_NEAR(got[i], exact, kExpError * exact + kExpFloor);
      sum += exact;
    }
    CHECK_SAME_BITS(got + n, zeros.data(), padded - n);
    for (std::int64_t i = padded; i < stride && row + 1 < rows; ++i) CHECK_EQ(got[i], kUntouched);
    // A lane adds n / 16 terms, the tree 4, and the division rounds once: none more than u of the (positive) sum.
    const double rounding = (static_cast<double>(padded / kLanes) + 5.0) * kUnitRoundoff;
    CHECK_NEAR(inverse[row] * sum, 1.0, 1.01 * (rounding + kExpError) + static_cast<double>(n) * kExpFloor);
  }
}

void for_each_length(const std::function<void(std::int64_t)>& run) {
  for (std::int64_t n = 1; n <= 65; ++n) run(n);
  for (const std::int64_t n : {511, 512}) run(n);
}

TEST_EACH_ISA(softmax_of_random_scores) {
  Random random(4);
  for (const double magnitude : {1e-30, 0.01, 1.0, 10.0, 80.0, 1e4}) {
    for_each_length([&](std::int64_t n) {
      const check::Scope scope("n ", n, ", magnitude ", magnitude);
      std::vector<std::vector<float>> rows(static_cast<std::size_t>(random.integer(1, 5)));
      for (std::vector<float>& row : rows) {
        for (std::int64_t i = 0; i < n; ++i) row.push_back(static_cast<float>(random.uniform(-magnitude, magnitude)));
      }
      check_softmax(kernels, rows, random.integer(0, 1) * kLanes);
    });
  }
}

TEST_EACH_ISA(softmax_of_identical_scores_is_even) {
  for (const float value : {0.0f, -0.0f, 1.0f, -1e4f, 1e4f, 1e-40f, -1e30f, 1e30f}) {
    for_each_length([&](std::int64_t n) {
      const check::Scope scope("n ", n, ", value ", value);
      const std::vector<float> scores(static_cast<std::size_t>(n), value);
      check_softmax(kernels, {scores, scores, scores});
      Array<float> each((n + kLanes - 1) / kLanes * kLanes, value), inverse(1);
      kernels.softmax(each.data(), each.size(), 1, n, inverse.data());
      CHECK_EQ(inverse[0], 1.0f / static_cast<float>(n));
      for (std::int64_t i = 0; i < n; ++i) CHECK_EQ(each[i], 1.0f);
    });
  }
}

TEST_EACH_ISA(softmax_with_one_score_far_above_the_rest) {
  for_each_length([&](std::int64_t n) {
    for (const std::int64_t at : {std::int64_t{0}, n / 2, n - 1}) {
      const check::Scope scope("n ", n, ", highest at ", at);
      std::vector<float> scores(static_cast<std::size_t>(n), -1e4f);
      scores[static_cast<std::size_t>(at)] = 1e4f;
      check_softmax(kernels, {scores});
    }
  });
}

TEST_EACH_ISA(softmax_is_exact_enough_over_the_whole_range_of_exp) {
  // 512 arguments at a time, from 0 down to below the clamp.
  for (int block = 0; block < 100; ++block) {
    const check::Scope scope("block ", block);
    std::vector<float> scores = {0.0f};
    for (int i = 1; i < 512; ++i) scores.push_back(-static_cast<float>(block * 512 + i) * 0.00175f);
    check_softmax(kernels, {scores});
  }
}

TEST_EACH_ISA(softmax_of_scores_that_are_no_numbers_is_none) {
  for_each_length([&](std::int64_t n) {
    for (const std::int64_t at : {std::int64_t{0}, n / 2, n - 1}) {
      for (const float bad : {NAN, -NAN, INFINITY}) {
        const check::Scope scope("n ", n, ", ", bad, " at ", at);
        const std::int64_t padded = (n + kLanes - 1) / kLanes * kLanes;
        Array<float> scores(3 * padded, 1.0f), inverse(3);
        scores[padded + at] = bad;
        kernels.softmax(scores.data(), padded, 3, n, inverse.data());
        CHECK(std::isnan(inverse[1]));
        for (const std::int64_t row : {0, 2}) {
          CHECK_EQ(inverse[row], 1.0f / static_cast<float>(n));
          for (std::int64_t i = 0; i < n; ++i) CHECK_EQ(scores[row * padded + i], 1.0f);
        }
      }
    }
  });
}

}  // namespace
}  // namespace agnews_fast
