#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "arrays.h"
#include "check.h"
#include "kernels/each_isa.h"

namespace agnews_fast {
namespace {

constexpr Operand16 kOperands[] = {Operand16::kLeft, Operand16::kRight, Operand16::kRightTransposed};

std::int64_t round_up(std::int64_t n, std::int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

struct Matrix {
  Matrix(std::int64_t row_count, std::int64_t column_count, int most, std::int64_t extra_stride = 0)
      : rows(row_count),
        columns(column_count),
        stride(column_count + extra_stride),
        levels(most),
        x((row_count - 1) * stride + column_count) {}

  float& at(std::int64_t row, std::int64_t column) { return x[row * stride + column]; }
  float at(std::int64_t row, std::int64_t column) const { return x[row * stride + column]; }
  void fill(float value) { std::fill(x.begin(), x.end(), value); }

  // Rows of x that an operand holds, its padding included.
  std::int64_t padded_rows(Operand16 operand) const {
    return operand == Operand16::kLeft ? rows : round_up(rows, operand == Operand16::kRight ? 2 : 16);
  }

  // Where kernels.h puts an element.
  std::int64_t place(Operand16 operand, std::int64_t row, std::int64_t column) const {
    if (operand == Operand16::kLeft) return row * columns + column;
    const bool transposed = operand == Operand16::kRightTransposed;
    const std::int64_t k = transposed ? column : row, n = transposed ? row : column;
    const std::int64_t pairs = (transposed ? columns : round_up(rows, 2)) / 2;
    return ((n / 16 * pairs + k / 2) * 16 + n % 16) * 2 + k % 2;
  }

  // Quantises as every operand, and checks the bits against the specification. Returns the values, padding included,
  // row by row.
  Array<std::int16_t> run(const Kernels& kernels, Operand16 operand) {
    const std::int64_t size = padded_rows(operand) * columns;
    Array<std::int16_t> got(size, 0x1eee), specified(size, 0x1ddd), values(size);
    scale = kernels.quantize_s16(x.data(), stride, rows, columns, levels, operand, got.data());
    const float specified_scale =
        scalar_kernels().quantize_s16(x.data(), stride, rows, columns, levels, operand, specified.data());
    CHECK_SAME_BITS(&scale, &specified_scale, 1);
    CHECK_SAME_BITS(got.data(), specified.data(), size);
    for (std::int64_t i = 0; i < size; ++i) values[i] = got[place(operand, i / columns, i % columns)];
    return values;
  }

  // Compares finite values with the definition.
  void check(const Kernels& kernels) {
    double largest = 0.0;
    for (std::int64_t i = 0; i < rows * columns; ++i) {
      largest = std::max(largest, std::fabs(static_cast<double>(at(i / columns, i % columns))));
    }
    const bool usable = largest >= kSmallestRange;
    const double exact = usable ? largest / levels : 0.0;
    for (const Operand16 operand : kOperands) {
      const check::Scope scope("operand ", static_cast<int>(operand));
      const Array<std::int16_t> values = run(kernels, operand);
      CHECK_NEAR(scale, exact, 1.01 * kUnitRoundoff * exact);
      for (std::int64_t i = 0; i < values.size(); ++i) {
        const check::Scope element("element ", i);
        CHECK(std::abs(static_cast<int>(values[i])) <= levels);
        // The reciprocal and the product round, by at most u of `levels` each; then half a level.
        const double wanted = usable && i < rows * columns ? at(i / columns, i % columns) / exact : 0.0;
        CHECK_NEAR(values[i], wanted, wanted == 0.0 ? 0.0 : 0.5 + 2.1 * kUnitRoundoff * levels);
      }
    }
  }

  std::int64_t rows, columns, stride;
  int levels;
  Array<float> x;
  float scale = 0.0f;
};

TEST_EACH_ISA(quantize_s16_of_random_matrices) {
  Random random(70);
  for (const std::int64_t columns : {16, 32, 48, 64, 112}) {
    for (const std::int64_t rows : {1, 2, 3, 4, 5, 6, 7, 15, 16, 17, 31, 32, 33, 53}) {
      const int levels = static_cast<int>(random.integer(0, 1) == 0 ? 4095 : random.integer(1, 32767));
      const check::Scope scope("rows ", rows, ", columns ", columns, ", levels ", levels);
      Matrix matrix(rows, columns, levels, random.integer(0, 2) * 16);
      const double magnitude = std::pow(10.0, random.uniform(-6, 6));
      for (float& x : matrix.x) x = static_cast<float>(magnitude * random.normal());
      // What lies between the rows belongs to others.
      for (std::int64_t row = 0; row + 1 < rows; ++row) {
        for (std::int64_t c = columns; c < matrix.stride; ++c) matrix.at(row, c) = INFINITY;
      }
      matrix.check(kernels);
    }
  }
}

TEST_EACH_ISA(quantize_s16_of_extreme_matrices) {
  Random random(71);
  for (const std::int64_t rows : {1, 5, 16, 18}) {
    for (const int levels : {1, 4095, 32767}) {
      const check::Scope scope("rows ", rows, ", levels ", levels);
      Matrix matrix(rows, 32, levels);
      for (const float value : {0.0f, -0.0f, 1e-40f, -0.99e-30f, 1.01e-30f, 0.7f, -0.7f, 1e4f, -3.4e38f}) {
        const check::Scope constant("all ", value);
        matrix.fill(value);
        matrix.check(kernels);
      }
      for (const float outlier : {1e4f, -1e4f, 3.4e38f}) {
        for (const double others : {1e-40, 0.1, 1.0}) {
          const check::Scope one("one of ", outlier, " among ", others);
          for (float& x : matrix.x) x = static_cast<float>(others * random.normal());
          matrix.at(rows - 1, random.integer(0, 31)) = outlier;
          matrix.check(kernels);
        }
      }
      // Halfway between levels: to the even one.
      matrix.fill(0.5f);
      matrix.at(0, 3) = static_cast<float>(levels);
      matrix.at(0, 4) = -1.5f;
      if (levels > 1) {
        matrix.check(kernels);
        const Array<std::int16_t> values = matrix.run(kernels, Operand16::kLeft);
        CHECK_EQ(values[0], 0);
        CHECK_EQ(values[3], levels);
        CHECK_EQ(values[4], -2);
      }
    }
  }
}

TEST_EACH_ISA(quantize_s16_of_what_is_no_number_is_zeros_with_a_scale_that_is_none) {
  Random random(72);
  for (const std::int64_t rows : {1, 3, 17}) {
    for (const std::int64_t at : {std::int64_t{0}, std::int64_t{17}, rows * 48 - 1}) {
      for (const float value : {INFINITY, -INFINITY, NAN, -NAN, std::numeric_limits<float>::signaling_NaN()}) {
        const check::Scope scope("rows ", rows, ", at ", at, ": ", value);
        Matrix matrix(rows, 48, 4095);
        for (float& x : matrix.x) x = static_cast<float>(random.normal());
        matrix.x[at] = value;
        for (const Operand16 operand : kOperands) {
          const Array<std::int16_t> values = matrix.run(kernels, operand);
          CHECK(std::isnan(matrix.scale));
          CHECK(std::all_of(values.begin(), values.end(), [](std::int16_t v) { return v == 0; }));
        }
      }
    }
  }
}

}  // namespace
}  // namespace agnews_fast
