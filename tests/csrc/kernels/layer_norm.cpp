#include <algorithm>
#include <cmath>

#include "arrays.h"
#include "check.h"
#include "kernels/each_isa.h"

namespace agnews_fast {
namespace {

constexpr std::int64_t kWidths[] = {1, 2, 7, 15, 16, 17, 31, 120, 128, 768, 1000};
constexpr float kEpsilon = 1e-12f;

struct Rows {
  Rows(std::int64_t row_count, std::int64_t width, std::int64_t extra_stride = 0)
      : rows(row_count),
        columns(width),
        padded((width + kLanes - 1) / kLanes * kLanes),
        stride(padded + extra_stride),
        x((row_count - 1) * stride + padded),
        residual(x.size()),
        out(x.size(), kUntouched),
        rstds(row_count),
        gamma(padded),
        beta(padded) {
    // Between the rows lies what no row may see.
    for (std::int64_t i = 0; i < x.size(); ++i) {
      if (i % stride >= padded) x[i] = residual[i] = kUntouched;
    }
  }

  // gamma and beta as trained models have them: near 1 and 0, a few far off.
  void randomize_parameters(Random& random) {
    for (std::int64_t c = 0; c < columns; ++c) {
      gamma[c] = static_cast<float>(c % 50 == 3 ? 5.0 : 1.0 + 0.1 * random.normal());
      beta[c] = static_cast<float>(0.3 * random.normal());
    }
  }

  template <typename Value>
  void fill(Array<float>& which, Value value) {
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t c = 0; c < columns; ++c) which[row * stride + c] = static_cast<float>(value(c));
    }
  }

  void normalize(const Kernels& kernels, const float* from, const float* add, float* to, float* to_rstds) const {
    kernels.layer_norm(from, add, stride, rows, columns, gamma.data(), beta.data(), kEpsilon, to, to_rstds);
  }

  // Runs into `out`, and checks: the bits of the specification, also when the output takes the place of an input, zeros
  // in the padding, and nothing written between the rows.
  void run(const Kernels& kernels, bool with_residual) {
    const float* add = with_residual ? residual.data() : nullptr;
    Array<float> specified(x.size(), kUntouched), specified_rstds(rows);
    normalize(scalar_kernels(), x.data(), add, specified.data(), specified_rstds.data());
    normalize(kernels, x.data(), add, out.data(), rstds.data());
    CHECK_SAME_BITS(out.data(), specified.data(), out.size());
    CHECK_SAME_BITS(rstds.data(), specified_rstds.data(), rows);
    const Array<float> zeros(kLanes);
    for (std::int64_t row = 0; row < rows; ++row) {
      CHECK_SAME_BITS(out.data() + row * stride + columns, zeros.data(), padded - columns);
    }
    for (std::int64_t i = 0; i < out.size(); ++i) {
      if (i % stride >= padded) CHECK_EQ(out[i], kUntouched);
    }

    Array<float> in_place(x.size());
    std::copy(x.begin(), x.end(), in_place.begin());
    normalize(kernels, in_place.data(), add, in_place.data(), nullptr);
    CHECK_SAME_BITS(in_place.data(), specified.data(), out.size());
    if (with_residual) {
      std::copy(residual.begin(), residual.end(), in_place.begin());
      normalize(kernels, x.data(), in_place.data(), in_place.data(), nullptr);
      CHECK_SAME_BITS(in_place.data(), specified.data(), out.size());
    }
  }

  // Compares `out` with the definition, for rows whose values are not all (nearly) the same.
  void check_values(bool with_residual) const {
    for (std::int64_t row = 0; row < rows; ++row) check_row(row * stride, with_residual, rstds[row]);
  }

  void check_row(std::int64_t at, bool with_residual, float given_rstd) const {
    const auto value = [&](std::int64_t c) -> double {
      return with_residual ? x[at + c] + residual[at + c] : x[at + c];
    };
    const auto count = static_cast<double>(columns);
    double mean = 0.0, magnitude = 0.0, variance = 0.0, deviation = 0.0, largest = 0.0;
    for (std::int64_t c = 0; c < columns; ++c) {
      mean += value(c) / count;
      magnitude += std::fabs(value(c)) / count;
    }
    for (std::int64_t c = 0; c < columns; ++c) {
      const double d = value(c) - mean;
      variance += d * d / count;
      deviation += std::fabs(d) / count;
      largest = std::max(largest, std::fabs(d));
    }
    const double rstd = 1.0 / std::sqrt(variance + kEpsilon);
    // Each of the steps of a lane, of the tree (4) and the division rounds by u of what has been added up.
    const double steps = static_cast<double>(padded / kLanes) + 5.0, u = kUnitRoundoff;
    const double d_error = steps * u * magnitude + u * largest;
    const double variance_error = 2.0 * d_error * deviation + d_error * d_error + (steps + 1.0) * u * variance;
    // 1 / sqrt halves a small relative error; not halving it covers what is not small. It rounds three times.
    const double rstd_error = variance_error / (variance + kEpsilon) + 3.0 * u;
    CHECK_NEAR(given_rstd, rstd, 1.01 * rstd * rstd_error);
    for (std::int64_t c = 0; c < columns; ++c) {
      const double d = value(c) - mean, exact = d * rstd * gamma[c] + beta[c];
      const double error = std::fabs(gamma[c]) * rstd * (d_error + std::fabs(d) * (rstd_error + 2.0 * u));
      CHECK_NEAR(out[at + c], exact, 1.01 * (error + u * std::fabs(exact)));
    }
  }

  std::int64_t rows, columns, padded, stride;
  Array<float> x, residual, out, rstds, gamma, beta;
};

TEST_EACH_ISA(layer_norm_of_random_rows) {
  Random random(5);
  for (const std::int64_t columns : kWidths) {
    for (const double magnitude : {1e-3, 1.0, 1e4, 1e17}) {
      for (const double offset : {0.0, 3.0}) {
        for (const bool with_residual : {false, true}) {
          const std::int64_t rows = random.integer(1, 7), extra_stride = random.integer(0, 1) * kLanes;
          const check::Scope scope("rows ", rows, ", columns ", columns, ", extra stride ", extra_stride,
                                   ", magnitude ", magnitude, ", offset ", offset, ", residual ", with_residual);
          Rows test(rows, columns, extra_stride);
          test.randomize_parameters(random);
          test.fill(test.x, [&](std::int64_t) { return magnitude * (offset + random.normal()); });
          test.fill(test.residual, [&](std::int64_t) { return magnitude * random.normal(); });
          test.run(kernels, with_residual);
          if (columns > 1) test.check_values(with_residual);
        }
      }
    }
  }
}

// As a foreign file may leave it.
TEST_EACH_ISA(layer_norm_does_not_see_what_pads_its_inputs) {
  Random random(10);
  for (const std::int64_t columns : kWidths) {
    for (const bool with_residual : {false, true}) {
      for (const float padding : {3.0f, -1e30f, INFINITY, NAN}) {
        const check::Scope scope("columns ", columns, ", residual ", with_residual, ", padding ", padding);
        Rows test(4, columns);
        test.randomize_parameters(random);
        test.fill(test.x, [&](std::int64_t) { return random.normal(); });
        test.fill(test.residual, [&](std::int64_t) { return random.normal(); });
        for (std::int64_t i = 0; i < test.x.size(); ++i) {
          if (i % test.stride >= columns) test.x[i] = test.residual[i] = padding;
        }
        test.run(kernels, with_residual);
        if (columns > 1) test.check_values(with_residual);
      }
    }
  }
}

TEST_EACH_ISA(layer_norm_of_any_number_of_rows) {
  Random random(9);
  for (std::int64_t rows = 1; rows <= 13; ++rows) {
    const check::Scope scope("rows ", rows);
    Rows test(rows, 40, 16);
    test.randomize_parameters(random);
    test.fill(test.x, [&](std::int64_t) { return random.normal(); });
    test.run(kernels, false);
    test.check_values(false);
  }
  // None at all: a thread may be left without a share.
  Rows none(1, 40);
  kernels.layer_norm(none.x.data(), nullptr, 48, 0, 40, none.gamma.data(), none.beta.data(), kEpsilon, none.out.data(),
                     none.rstds.data());
  for (const float value : none.out) CHECK_EQ(value, kUntouched);
  CHECK_EQ(none.rstds[0], 0.0f);
}

TEST_EACH_ISA(layer_norm_of_a_row_with_one_large_value) {
  Random random(6);
  for (const std::int64_t columns : kWidths) {
    const check::Scope scope("columns ", columns);
    Rows test(4, columns);
    test.randomize_parameters(random);
    test.fill(test.x, [&](std::int64_t c) { return c == columns - 1 ? 1e4 : 0.1 * random.normal(); });
    test.run(kernels, false);
    if (columns > 1) test.check_values(false);
  }
}

TEST_EACH_ISA(layer_norm_of_a_constant_row_is_beta) {
  Random random(7);
  for (const std::int64_t columns : kWidths) {
    for (const float constant : {0.0f, -0.0f, 1.5f, -2.0f, 1024.0f}) {  // their sums are exact
      const check::Scope scope("columns ", columns, ", constant ", constant);
      Rows test(1, columns);
      test.randomize_parameters(random);
      test.fill(test.x, [&](std::int64_t) { return constant; });
      test.run(kernels, true);
      CHECK_SAME_BITS(test.out.data(), test.beta.data(), test.padded);
    }
  }
}

// No oracle here but the specification: what is left of such rows is mostly rounding.
TEST_EACH_ISA(layer_norm_of_extreme_rows_equals_the_specification) {
  Random random(8);
  for (const std::int64_t columns : kWidths) {
    for (const float value : {1e-40f, -1e-40f, 0.1f, -0.3f, 1e18f, 1e30f, -1e30f}) {
      const check::Scope scope("columns ", columns, ", value ", value);
      Rows test(4, columns);
      test.randomize_parameters(random);
      test.fill(test.x, [&](std::int64_t) { return value; });
      test.run(kernels, false);
      test.fill(test.x, [&](std::int64_t c) { return c % 2 == 0 ? value : -value; });
      test.fill(test.residual, [&](std::int64_t c) { return c % 3 == 0 ? value : 0.0f; });
      test.run(kernels, true);
    }
  }
}

}  // namespace
}  // namespace agnews_fast
