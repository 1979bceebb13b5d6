#include <algorithm>
#include <cmath>

#include "arrays.h"
#include "check.h"
#include "kernels/each_isa.h"

namespace agnews_fast {
namespace {

struct Shape {
  std::int64_t m, n, k, extra_stride;
  bool scaled, biased, panels;  // panels: b lies in panels of 16 columns
};

void check_product(const Kernels& kernels, const Shape& shape, Random& random) {
  const auto [m, n, k, extra, scaled, biased, panels] = shape;
  const check::Scope scope("m ", m, ", n ", n, ", k ", k, ", extra stride ", extra, ", scale ", scaled, ", bias ",
                           biased, ", panels ", panels);
  const std::int64_t a_stride = (k + kLanes - 1) / kLanes * kLanes + extra, c_stride = n + extra;
  const std::int64_t b_stride = panels ? kLanes : n + extra, b_panel_stride = panels ? k * kLanes + extra : kLanes;
  const auto b_at = [=](std::int64_t p, std::int64_t j) {
    return p * b_stride + j / kLanes * b_panel_stride + j % kLanes;
  };
  Array<float> a((m - 1) * a_stride + k), b(b_at(k - 1, n - 1) + 1), scale(m), bias(n);
  for (Array<float>* x : {&a, &b, &scale, &bias}) {
    for (float& value : *x) value = static_cast<float>(random.uniform(-2, 2));
  }
  a[0] = -0.0f;
  b[0] = 1e4f;
  Array<float> c((m - 1) * c_stride + n, kUntouched), specified((m - 1) * c_stride + n, kUntouched);
  const auto run = [&](const Kernels& which, Array<float>& out) {
    which.gemm_f32(a.data(), a_stride, b.data(), b_stride, b_panel_stride, m, n, k, scaled ? scale.data() : nullptr,
                   biased ? bias.data() : nullptr, out.data(), c_stride);
  };
  run(kernels, c);
  run(scalar_kernels(), specified);
  CHECK_SAME_BITS(c.data(), specified.data(), c.size());
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < c_stride && i * c_stride + j < c.size(); ++j) {
      const float got = c[i * c_stride + j];
      if (j >= n) {
        CHECK_EQ(got, kUntouched);
        continue;
      }
      double sum = biased ? bias[j] : 0.0, magnitude = std::fabs(sum);
      for (std::int64_t p = 0; p < k; ++p) {
        const double product = static_cast<double>(a[i * a_stride + p]) * b[b_at(p, j)];
        sum += product;
        magnitude += std::fabs(product);
      }
      // A chain of k fmas rounds k times, each by at most u times the magnitude so far; the scale rounds once more.
      const double factor = scaled ? scale[i] : 1.0;
      CHECK_NEAR(got, factor * sum, 1.01 * kUnitRoundoff * static_cast<double>(k + 1) * std::fabs(factor) * magnitude);
    }
  }
}

TEST_EACH_ISA(gemm_f32_multiplies_matrices_of_every_shape) {
  Random random(2);
  int options = 0;
  for (std::int64_t m = 1; m <= 13; ++m) {
    for (std::int64_t n = 16; n <= 144; n += 16) {
      for (const std::int64_t k : {1, 2, 3, 4, 7, 16, 17, 33, 64, 65}) {
        ++options;
        const std::int64_t extra = options % 3 * kLanes;
        check_product(kernels, {m, n, k, extra, options % 2 == 0, options / 2 % 2 == 0, options / 4 % 2 == 0}, random);
      }
    }
  }
}

TEST_EACH_ISA(gemm_f32_multiplies_long_and_wide_matrices) {
  Random random(3);
  for (const bool option : {false, true}) {
    check_product(kernels, {7, 48, 1000, 0, option, !option, option}, random);
    check_product(kernels, {48, 512, 64, 16, option, option, !option}, random);
    check_product(kernels, {1, 768, 768, 16, option, !option, option}, random);
  }
}

TEST_EACH_ISA(gemm_f32_keeps_denormals) {
  Array<float> a(1, 1e-40f), b(16, 0.5f), c(16);
  kernels.gemm_f32(a.data(), 16, b.data(), 16, 16, 1, 16, 1, nullptr, nullptr, c.data(), 16);
  for (const float x : c) CHECK_EQ(x, 1e-40f * 0.5f);
  CHECK(c[0] > 0.0f);
}

}  // namespace
}  // namespace agnews_fast
