#include "model/overflow.h"

#include <vector>

#include "arrays.h"
#include "check.h"
#include "kernels/registry.h"
#include "model/error.h"

namespace agnews_fast {
namespace {

// Two panels of zeros that a test damages.
struct Matrix {
  explicit Matrix(int depth_, std::int64_t outliers = 0)
      : depth(depth_),
        data(n * k),
        scale(n, 1.0f),
        bias(n),
        column_sum(n),
        outlier_begin(n / kPanel + 1, static_cast<std::int32_t>(outliers)),
        outlier_k(outliers),
        outlier_column(outliers),
        outlier_value(outliers),
        wide_weight(n * wide) {
    outlier_begin[0] = 0;
  }

  // Sets a weight and keeps column_sum right.
  void set(std::int64_t at, std::int64_t column, int value) {
    std::int8_t& w =
        data[((column / kPanel * (k / kGroup) + at / kGroup) * kPanel + column % kPanel) * kGroup + at % kGroup];
    column_sum[column] += value - w;
    w = static_cast<std::int8_t>(value);
  }

  PackedWeights packed() const {
    return {data.data(),
            scale.data(),
            bias.data(),
            column_sum.data(),
            outlier_begin.data(),
            outlier_k.data(),
            outlier_column.data(),
            outlier_value.data(),
            n,
            k,
            depth,
            nullptr,
            wide_weight.data(),
            wide};
  }
  void check(int levels) const {
    check_weights(select_kernels(""), packed(), outlier_k.size(), levels, "layers.0.ffn1.weight");
  }

  static constexpr std::int64_t n = 32, k = 160, wide = 4;
  int depth;
  Array<std::int8_t> data;
  Array<float> scale, bias;
  Array<std::int32_t> column_sum, outlier_begin, outlier_k, outlier_column, outlier_value;
  Array<std::int16_t> wide_weight;  // [n / 16][wide / 2][16][2]
};

// The k that meet in one 16-bit lane: the two of `pair` (0 or 2) of each of `depth` groups from `block` on.
std::vector<std::int64_t> window(std::int64_t block, int pair, int depth) {
  std::vector<std::int64_t> members;
  for (int d = 0; d < depth; ++d) {
    for (int i = 0; i < 2; ++i) members.push_back(block + d * kGroup + pair + i);
  }
  return members;
}

// Fills a window to `total`, spread over its members.
void fill(Matrix& matrix, const std::vector<std::int64_t>& members, std::int64_t column, int total, int sign) {
  const int size = static_cast<int>(members.size());
  for (int i = 0; i < size; ++i) {
    matrix.set(members[static_cast<std::size_t>(i)], column, sign * (total / size + (i < total % size ? 1 : 0)));
  }
}

TEST(zeros_pass) {
  for (const int depth : {4, 8}) {
    for (const int levels : {127, 255}) Matrix(depth).check(levels);
  }
}

TEST(a_window_at_the_bound_passes_and_one_above_fails) {
  for (const int depth : {4, 8}) {
    for (const int levels : {127, 255}) {
      const int bound = 32767 / levels;
      for (const int sign : {1, -1}) {
        for (const std::int64_t column : {0, 7, 15, 16, 31}) {
          for (const int pair : {0, 2}) {
            for (std::int64_t block = 0; block < Matrix::k; block += kGroup * depth) {
              const check::Scope scope("depth ", depth, ", levels ", levels, ", sign ", sign, ", column ", column,
                                       ", k ", block, ", pair ", pair);
              Matrix matrix(depth);
              fill(matrix, window(block, pair, depth), column, bound, sign);
              matrix.check(levels);
              fill(matrix, window(block, pair, depth), column, bound + 1, sign);
              CHECK_THROWS(matrix.check(levels), ModelError, "output column " + std::to_string(column) + ":");
              CHECK_THROWS(matrix.check(levels), ModelError, "would overflow 16 bits");
              CHECK_THROWS(matrix.check(levels), ModelError, "k = " + std::to_string(block));
            }
          }
        }
      }
    }
  }
}

TEST(a_few_large_weights_count_as_much_as_many_small_ones) {
  Matrix matrix(8);
  matrix.set(0, 3, 127);
  matrix.set(13, 3, 127);
  matrix.set(28, 3, 4);  // 258 = 32767 / 127
  matrix.check(127);
  CHECK_THROWS(matrix.check(255), ModelError, "would overflow 16 bits");
  matrix.set(28, 3, 5);
  CHECK_THROWS(matrix.check(127), ModelError, "layers.0.ffn1.weight");
}

TEST(positives_and_negatives_have_a_bound_each) {
  for (const int depth : {4, 8}) {
    for (const int levels : {127, 255}) {
      const check::Scope scope("depth ", depth, ", levels ", levels);
      const int bound = 32767 / levels;
      const std::vector<std::int64_t> members = window(32, 2, depth);
      const auto half = static_cast<std::ptrdiff_t>(members.size() / 2);
      const std::vector<std::int64_t> positive(members.begin(), members.begin() + half);
      const std::vector<std::int64_t> negative(members.begin() + half, members.end());
      Matrix matrix(depth);
      fill(matrix, positive, 5, bound, 1);
      fill(matrix, negative, 5, bound, -1);
      matrix.check(levels);
      // One more on either side fails, though the window's sum stays small.
      fill(matrix, positive, 5, bound + 1, 1);
      CHECK_THROWS(matrix.check(levels), ModelError, "would overflow 16 bits");
      fill(matrix, positive, 5, bound, 1);
      fill(matrix, negative, 5, bound + 1, -1);
      CHECK_THROWS(matrix.check(levels), ModelError, "would overflow 16 bits");
    }
  }
}

TEST(neighbouring_windows_do_not_add_up) {
  for (const int depth : {4, 8}) {
    Matrix matrix(depth);
    for (std::int64_t block = 0; block < Matrix::k; block += kGroup * depth) {
      for (const int pair : {0, 2}) {
        for (std::int64_t column = 0; column < Matrix::n; ++column) {
          fill(matrix, window(block, pair, depth), column, 258, column % 2 == 0 ? 1 : -1);
        }
      }
    }
    matrix.check(127);
  }
}

TEST(minus_128_is_refused) {
  for (const std::int64_t column : {0, 31}) {
    for (const std::int64_t k : {std::int64_t{0}, std::int64_t{33}, Matrix::k - 1}) {
      Matrix matrix(8);
      matrix.set(k, column, -127);
      matrix.check(127);
      matrix.set(k, column, -128);
      CHECK_THROWS(matrix.check(127), ModelError,
                   "output column " + std::to_string(column) + ": a packed weight is -128");
    }
  }
}

TEST(a_wrong_column_sum_is_refused) {
  for (const std::int64_t column : {0, 15, 16, 31}) {
    Matrix matrix(4, 1);
    matrix.set(40, column, 3);
    matrix.outlier_begin[1] = column < 16 ? 1 : 0;
    matrix.outlier_column[0] = static_cast<std::int32_t>(column % kPanel);
    matrix.outlier_value[0] = -500;
    matrix.column_sum[column] -= 500;
    matrix.check(127);
    for (const int off : {-1, 1, 500}) {
      matrix.column_sum[column] += off;
      CHECK_THROWS(matrix.check(127), ModelError,
                   "output column " + std::to_string(column) + ": the weights add up to");
      matrix.column_sum[column] -= off;
    }
  }
}

TEST(outliers_outside_the_matrix_are_refused) {
  const auto damaged = [](void (*damage)(Matrix&)) {
    Matrix matrix(8, 3);
    matrix.check(127);
    damage(matrix);
    return matrix;
  };
  const char* const message = "outlier 2 lies outside the matrix or is too large";
  CHECK_THROWS(damaged([](Matrix& m) { m.outlier_k[2] = -1; }).check(127), ModelError, message);
  CHECK_THROWS(damaged([](Matrix& m) { m.outlier_k[2] = Matrix::k; }).check(127), ModelError, message);
  CHECK_THROWS(damaged([](Matrix& m) { m.outlier_column[2] = -1; }).check(127), ModelError, message);
  CHECK_THROWS(damaged([](Matrix& m) { m.outlier_column[2] = 16; }).check(127), ModelError, message);
  CHECK_THROWS(damaged([](Matrix& m) { m.outlier_value[2] = 32768; }).check(127), ModelError, message);
  CHECK_THROWS(damaged([](Matrix& m) { m.outlier_value[2] = INT32_MIN; }).check(127), ModelError, message);
  damaged([](Matrix& m) { m.outlier_k[2] = Matrix::k - 1, m.outlier_column[2] = 15; }).check(127);
}

TEST(an_index_of_outliers_that_is_out_of_order_is_refused) {
  const auto damaged = [](std::int32_t first, std::int32_t middle, std::int32_t last) {
    Matrix matrix(8, 3);
    matrix.outlier_begin[0] = first;
    matrix.outlier_begin[1] = middle;
    matrix.outlier_begin[2] = last;
    matrix.check(127);
  };
  damaged(0, 1, 3);
  damaged(0, 0, 0);  // the lists may be longer than what is used
  CHECK_THROWS(damaged(1, 1, 3), ModelError, "outlier_begin");
  CHECK_THROWS(damaged(0, 1, 4), ModelError, "outlier_begin");
  CHECK_THROWS(damaged(0, 3, 2), ModelError, "outlier_begin decreases at panel 1");
  CHECK_THROWS(damaged(0, -1, 2), ModelError, "outlier_begin decreases at panel 0");
  CHECK_THROWS(damaged(0, 1000000, 3), ModelError, "outlier_begin decreases at panel 1");
  CHECK_THROWS(damaged(0, 0, -1), ModelError, "outlier_begin");
}

TEST(a_column_at_the_bound_of_32_bits_passes_and_one_above_fails) {
  for (const int levels : {127, 255}) {
    for (const int sign : {1, -1}) {
      const check::Scope scope("levels ", levels, ", sign ", sign);
      const std::int64_t bound = (std::int64_t{1} << 30) / levels;
      const std::int64_t count = (bound + 32766) / 32767;
      Matrix matrix(8, count);
      std::int64_t left = bound;
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t size = left < 32767 ? left : 32767;
        matrix.outlier_k[i] = static_cast<std::int32_t>(i % Matrix::k);
        matrix.outlier_column[i] = 9;
        matrix.outlier_value[i] = static_cast<std::int32_t>(sign * size);
        left -= size;
      }
      matrix.column_sum[9] = static_cast<std::int32_t>(sign * bound);
      matrix.outlier_begin[1] = matrix.outlier_begin[2];
      matrix.check(levels);
      // Of the other sign, so that only the magnitudes exceed the bound.
      matrix.set(0, 9, -sign);
      CHECK_THROWS(matrix.check(levels), ModelError, "output column 9: weights would overflow 32 bits");
    }
  }
}

TEST(wide_weights_at_the_bound_of_32_bits_pass_and_one_above_fails) {
  for (const int levels : {127, 255}) {
    for (const std::int64_t column : {0, 15, 16, 30}) {
      const check::Scope scope("levels ", levels, ", column ", column);
      const std::int64_t bound = (std::int64_t{1} << 29) / (levels * kWideSteps + 1);
      Matrix matrix(8);
      std::int16_t* first = matrix.wide_weight.data() + column / kPanel * kPanel * Matrix::wide + column % kPanel * 2;
      std::int16_t* const weights[] = {first, first + 1, first + 2 * kPanel, first + 2 * kPanel + 1};
      // Of both signs: magnitudes count.
      for (std::int64_t i = 0; i < 4; ++i) {
        *weights[i] = static_cast<std::int16_t>((bound / 4 + (i < bound % 4 ? 1 : 0)) * (i % 2 == 0 ? 1 : -1));
      }
      matrix.check(levels);
      for (std::int16_t* w : weights) {
        const std::int16_t good = *w;
        *w = static_cast<std::int16_t>(good < 0 ? good - 1 : good + 1);
        CHECK_THROWS(
            matrix.check(levels), ModelError,
            "output column " + std::to_string(column) + ": the weights of wide channels would overflow 32 bits");
        *w = good;
      }
    }
  }
}

}  // namespace
}  // namespace agnews_fast
