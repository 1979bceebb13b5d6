#include <cmath>
#include <functional>

#include "arrays.h"
#include "check.h"
#include "kernels/each_isa.h"

namespace agnews_fast {
namespace {

constexpr std::int32_t kUntouchedSum = 4321;

struct Product {
  Product(std::int64_t row_count, std::int64_t column_count, std::int64_t depth, std::int64_t extra_stride = 0)
      : m(row_count),
        n(column_count),
        k(depth),
        a_stride((depth + 1) / 2 * 2 + extra_stride),
        // The last row is as long as its pairs of k: not a number behind them is readable.
        a((row_count - 1) * a_stride + (depth + 1) / 2 * 2),
        b(column_count * ((depth + 1) / 2 * 2)),
        scale(row_count) {}

  std::int16_t& left(std::int64_t i, std::int64_t p) { return a[i * a_stride + p]; }
  std::int16_t& right(std::int64_t p, std::int64_t j) {
    return b[((j / 16 * ((k + 1) / 2) + p / 2) * 16 + j % 16) * 2 + p % 2];
  }

  void fill(const std::function<std::int64_t()>& left_value, const std::function<std::int64_t()>& right_value) {
    for (std::int64_t i = 0; i < m; ++i) {
      for (std::int64_t p = 0; p < k; ++p) left(i, p) = static_cast<std::int16_t>(left_value());
      // An odd k's other half may hold anything here, and holds 0 there.
      if (k % 2 != 0) left(i, k) = i % 2 == 0 ? 32767 : -32768;
    }
    for (std::int64_t j = 0; j < n; ++j) {
      for (std::int64_t p = 0; p < k; ++p) right(p, j) = static_cast<std::int16_t>(right_value());
    }
  }

  void check(const Kernels& kernels, std::int64_t extra_stride) {
    const std::int64_t stride = n + extra_stride, size = (m - 1) * stride + n;
    Array<std::int32_t> sums(size, kUntouchedSum), expected_sums(size, kUntouchedSum);
    Array<float> floats(size, kUntouched), expected_floats(size, kUntouched);
    for (std::int64_t i = 0; i < m; ++i) {
      for (std::int64_t j = 0; j < n; ++j) {
        std::int64_t sum = 0;
        for (std::int64_t p = 0; p < k; ++p) sum += std::int64_t{left(i, p)} * right(p, j);
        expected_sums[i * stride + j] = static_cast<std::int32_t>(sum);
        CHECK_EQ(expected_sums[i * stride + j], sum);  // else the inputs break the contract
        expected_floats[i * stride + j] = static_cast<float>(sum) * scale[i];
      }
    }
    kernels.gemm_s16s32(a.data(), a_stride, b.data(), m, n, k, sums.data(), stride);
    kernels.gemm_s16f32(a.data(), a_stride, b.data(), m, n, k, scale.data(), floats.data(), stride);
    CHECK_SAME_BITS(sums.data(), expected_sums.data(), size);
    CHECK_SAME_BITS(floats.data(), expected_floats.data(), size);
  }

  std::int64_t m, n, k, a_stride;
  Array<std::int16_t> a, b;
  Array<float> scale;
};

// The most that numbers of both sides may be.
std::int64_t most(std::int64_t k) {
  return std::min<std::int64_t>(32767, static_cast<std::int64_t>(std::sqrt(2147483647.0 / static_cast<double>(k))));
}

TEST_EACH_ISA(gemm_s16_of_random_numbers_is_exact) {
  Random random(80);
  const auto check_shape = [&](std::int64_t m, std::int64_t n, std::int64_t k) {
    const check::Scope scope("m ", m, ", n ", n, ", k ", k);
    Product product(m, n, k, random.integer(0, 2) * 2);
    for (float& scale : product.scale) scale = static_cast<float>(random.uniform(0, 2));
    const auto number = [&] { return random.integer(-most(k), most(k)); };
    product.fill(number, number);
    product.check(kernels, random.integer(0, 1) * 16);
  };
  for (std::int64_t m = 1; m <= 13; ++m) {
    for (const std::int64_t n : {16, 32, 48, 64, 80, 96, 112, 128}) {
      for (const std::int64_t k : {1, 2, 3, 16, 31}) check_shape(m, n, k);
    }
  }
  for (const std::int64_t k : {15, 17, 32, 33, 53, 64, 511, 512}) {
    check_shape(6, 64, k);
    check_shape(7, 48, k);
  }
}

TEST_EACH_ISA(gemm_s16_of_the_largest_numbers_does_not_overflow) {
  for (const std::int64_t k : {1, 2, 3, 64, 511, 2048}) {
    for (const int signs : {0, 1, 2}) {
      const check::Scope scope("k ", k, ", signs ", signs);
      Product product(7, 80, k);
      for (float& scale : product.scale) scale = 1e-4f;
      std::int64_t at = 0;
      product.fill([&] { return signs == 2 && ++at % 3 == 0 ? -most(k) : most(k); },
                   [&] { return signs == 1 ? -most(k) : most(k); });
      product.check(kernels, 0);
    }
  }
}

TEST_EACH_ISA(gemm_s16_multiplies_by_any_scale) {
  for (const float scale : {0.0f, 1e-40f, 1e-30f, 1e30f, INFINITY, NAN}) {
    const check::Scope scope("scale ", scale);
    Product product(8, 16, 5);
    product.scale[3] = scale;
    product.fill([] { return 3; }, [] { return -2; });
    product.check(kernels, 16);
    product.fill([] { return 0; }, [] { return 0; });
    product.scale[5] = 0.0f;
    // 0 * infinity and 0 * NaN are NaNs, of whichever sign.
    Array<float> out(8 * 16);
    kernels.gemm_s16f32(product.a.data(), product.a_stride, product.b.data(), 8, 16, 5, product.scale.data(),
                        out.data(), 16);
    CHECK_EQ(std::isnan(out[3 * 16]), !std::isfinite(scale));
    CHECK_EQ(out[5 * 16], 0.0f);
  }
}

}  // namespace
}  // namespace agnews_fast
