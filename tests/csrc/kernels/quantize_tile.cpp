#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "arrays.h"
#include "check.h"
#include "kernels/each_isa.h"

namespace agnews_fast {
namespace {

struct Tile {
  Tile(std::int64_t row_count, std::int64_t column_count, std::int64_t wide_count, int level_count,
       std::int64_t spare_k = 0)
      : rows(row_count),
        columns(column_count),
        wide_channels(wide_count),
        k((column_count + kKBlock - 1) / kKBlock * kKBlock + spare_k),
        stride(column_count + 16),
        levels(level_count),
        x((row_count - 1) * stride + column_count),
        inverse_divisor(column_count, 1.0f),
        wide_channel(wide_count),
        bytes(row_count * k, 0xee),
        wide(row_count * wide_count, 0x7eee),
        scale(row_count, NAN),
        zero_point(row_count, -1) {}

  float& at(std::int64_t row, std::int64_t column) { return x[row * stride + column]; }
  float at(std::int64_t row, std::int64_t column) const { return x[row * stride + column]; }
  std::uint8_t level(std::int64_t row, std::int64_t slot) const {
    return bytes[slot / kGroup * rows * kGroup + row * kGroup + slot % kGroup];
  }

  std::int16_t wide_level(std::int64_t row, std::int64_t i) const { return wide[(i / 2 * rows + row) * 2 + i % 2]; }
  bool is_wide(std::int64_t channel) const {
    return std::find(wide_channel.begin(), wide_channel.end(), channel) != wide_channel.end();
  }
  void make_wide(std::int64_t i, std::int64_t channel, double step) {
    wide_channel[i] = static_cast<std::int32_t>(channel);
    inverse_divisor[channel] = static_cast<float>(1.0 / (kWideSteps * step));
  }

  // Quantises, and checks the bits against the specification and what holds for any input.
  void run(const Kernels& kernels) {
    const Quantization q = {inverse_divisor.data(), wide_channel.data(), columns, wide_channels, k, levels};
    Array<std::uint8_t> specified(rows * k, 0xdd);
    Array<std::int16_t> specified_wide(rows * wide_channels, 0x7ddd);
    Array<float> specified_scale(rows);
    Array<std::int32_t> specified_zero_point(rows);
    scalar_kernels().quantize_tile(x.data(), stride, rows, q, specified.data(), specified_wide.data(),
                                   specified_scale.data(), specified_zero_point.data(), nullptr);
    Array<float> norms(long_windows(k), kUntouched);
    kernels.quantize_tile(x.data(), stride, rows, q, bytes.data(), wide.data(), scale.data(), zero_point.data(),
                          norms.data());
    check_norms(kernels, norms);
    CHECK_SAME_BITS(bytes.data(), specified.data(), bytes.size());
    CHECK_SAME_BITS(wide.data(), specified_wide.data(), wide.size());
    CHECK_SAME_BITS(scale.data(), specified_scale.data(), rows);
    CHECK_SAME_BITS(zero_point.data(), specified_zero_point.data(), rows);
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t slot = 0; slot < k; ++slot) CHECK(level(row, slot) <= levels);
      for (std::int64_t slot = columns; slot < k; ++slot) CHECK_EQ(level(row, slot), 0);
    }
  }

  void check_norms(const Kernels& kernels, const Array<float>& norms) const {
    for (std::int64_t i = 0; i < norms.size(); ++i) {
      const check::Scope scope("long window ", i);
      if (kernels.window_norms == nullptr) {
        CHECK_EQ(norms[i], kUntouched);
        continue;
      }
      double largest = 0.0;
      for (std::int64_t row = 0; row < rows && i < k / (kGroup * kLongDepth); ++row) {
        largest = std::max(largest, long_window_squares(i, [&](std::int64_t slot) { return level(row, slot); }));
      }
      // Where a sum of squares does not fit 16 bits, or activations do not fit 7, it may be infinite.
      if (norms[i] == INFINITY) {
        CHECK(levels == 255 || largest > 65534);
      } else {
        CHECK_NEAR(norms[i], std::sqrt(largest), 1.01 * kUnitRoundoff * std::sqrt(largest));
      }
    }
  }

  // Compares one row of finite values with the definition.
  void check_row(std::int64_t row) const {
    const check::Scope scope("row ", row);
    const auto value = [&](std::int64_t c) {
      // The exact product, rounded once.
      return static_cast<double>(static_cast<float>(static_cast<double>(at(row, c)) * inverse_divisor[c]));
    };
    double lo = 0.0, hi = 0.0;
    for (std::int64_t c = 0; c < columns; ++c) {
      lo = std::min(lo, value(c));
      hi = std::max(hi, value(c));
    }
    if (hi - lo < kSmallestRange) {
      CHECK_EQ(scale[row], 0.0f);
      CHECK_EQ(zero_point[row], 0);
      for (std::int64_t c = 0; c < columns; ++c) CHECK_EQ(level(row, c), 0);
      for (std::int64_t i = 0; i < wide_channels; ++i) CHECK_EQ(wide_level(row, i), 0);
      return;
    }
    const double exact_scale = (hi - lo) / levels;
    CHECK_NEAR(scale[row], exact_scale, 2.01 * kUnitRoundoff * exact_scale);  // hi - lo and the quotient round
    // hi - lo, inverse and -lo * inverse or the fma: 3 roundings of at most u of `levels`; then half a level.
    const double half = 0.5 + 3.1 * kUnitRoundoff * levels;
    CHECK(zero_point[row] >= 0 && zero_point[row] <= levels);
    CHECK_NEAR(zero_point[row], -lo / exact_scale, half);
    // Clamping to 0..levels takes back at most what rounding the zero point added.
    for (std::int64_t c = 0; c < columns; ++c) {
      CHECK_NEAR(level(row, c), value(c) / exact_scale + zero_point[row], half);
    }
    for (std::int64_t i = 0; i < wide_channels; ++i) {
      const double steps = value(wide_channel[i]) / exact_scale * kWideSteps;
      CHECK_NEAR(wide_level(row, i), steps, 0.5 + 3.1 * kUnitRoundoff * std::fabs(steps));
    }
  }

  std::int64_t rows, columns, wide_channels, k, stride;
  int levels;
  Array<float> x, inverse_divisor;
  Array<std::int32_t> wide_channel;
  Array<std::uint8_t> bytes;
  Array<std::int16_t> wide;
  Array<float> scale;
  Array<std::int32_t> zero_point;
};

TEST_EACH_ISA(quantize_tile_of_random_rows) {
  Random random(9);
  for (const std::int64_t columns : {16, 32, 48, 112, 144, 768, 3072}) {
    for (std::int64_t rows = 1; rows <= kRowTile; ++rows) {
      for (const std::int64_t wide : {0, 2, 4, 10}) {
        const int levels = random.integer(0, 1) == 0 ? 127 : 255;
        const check::Scope scope("columns ", columns, ", rows ", rows, ", wide ", wide, ", levels ", levels);
        Tile tile(rows, columns, wide, levels, wide == 2 ? kKBlock : 0);
        for (std::int64_t i = 0; i < wide; ++i) {
          tile.make_wide(i, i == 0 ? columns - 1 : random.integer(0, columns - 1), random.uniform(0.5, 9.0));
        }
        for (std::int64_t row = 0; row < rows; ++row) {
          const double magnitude = std::pow(10.0, random.uniform(-3, 3)), offset = random.uniform(-1, 1);
          for (std::int64_t c = 0; c < columns; ++c) {
            const double large = tile.is_wide(c) ? 20.0 : 1.0;
            tile.at(row, c) = static_cast<float>(magnitude * large * (offset + random.normal()));
          }
        }
        tile.run(kernels);
        for (std::int64_t row = 0; row < rows; ++row) tile.check_row(row);
      }
    }
  }
}

TEST_EACH_ISA(quantize_tile_of_extreme_rows) {
  Random random(10);
  const std::int64_t columns = 80, last = columns - 1;
  using Fill = void (*)(Tile&, std::int64_t row, Random&);
  static constexpr auto kConstant = [](Tile& tile, std::int64_t row, float value) {
    for (std::int64_t c = 0; c < tile.columns; ++c) tile.at(row, c) = value;
  };
  const std::vector<std::pair<const char*, Fill>> fills = {
      {"zeros", [](Tile& t, std::int64_t row, Random&) { kConstant(t, row, 0.0f); }},
      {"negative zeros", [](Tile& t, std::int64_t row, Random&) { kConstant(t, row, -0.0f); }},
      {"denormals", [](Tile& t, std::int64_t row, Random&) { kConstant(t, row, 1e-40f); }},
      {"below the smallest range", [](Tile& t, std::int64_t row, Random&) { kConstant(t, row, -0.99e-30f); }},
      {"above the smallest range", [](Tile& t, std::int64_t row, Random&) { kConstant(t, row, 1.01e-30f); }},
      {"constant", [](Tile& t, std::int64_t row, Random&) { kConstant(t, row, 0.7f); }},
      {"negative constant", [](Tile& t, std::int64_t row, Random&) { kConstant(t, row, -0.7f); }},
      {"huge", [](Tile& t, std::int64_t row, Random&) { kConstant(t, row, 1e30f); }},
      {"negative",
       [](Tile& t, std::int64_t row, Random& r) {
         for (std::int64_t c = 0; c < t.columns; ++c) t.at(row, c) = static_cast<float>(r.uniform(-3, -1));
       }},
      {"huge, both signs",
       [](Tile& t, std::int64_t row, Random& r) {
         for (std::int64_t c = 0; c < t.columns; ++c) t.at(row, c) = static_cast<float>(r.uniform(-1e30, 1e30));
       }},
      {"one of 1e4",
       [](Tile& t, std::int64_t row, Random& r) {
         for (std::int64_t c = 0; c < t.columns; ++c) t.at(row, c) = static_cast<float>(0.1 * r.normal());
         t.at(row, t.columns - 1) = 1e4f;
       }},
      {"one of -1e4 among denormals",
       [](Tile& t, std::int64_t row, Random&) {
         kConstant(t, row, 1e-40f);
         t.at(row, 0) = -1e4f;
       }},
      {"halfway between levels",
       [](Tile& t, std::int64_t row, Random&) {
         for (std::int64_t c = 0; c < t.columns; ++c) t.at(row, c) = static_cast<float>(c) + 0.5f;
         t.at(row, t.columns - 1) = static_cast<float>(t.levels);
       }},
  };
  for (const int levels : {127, 255}) {
    for (const auto& [name, fill] : fills) {
      for (const std::int64_t row : {0, 2, 3}) {
        const check::Scope scope(name, ", levels ", levels);
        Tile tile(4, columns, 2, levels);
        // Of a step that leaves the row's range to them: they go as far as 16 bits allow.
        tile.make_wide(0, last, 1.0 / kWideSteps);
        tile.make_wide(1, 0, 1.0 / kWideSteps);
        // Its neighbours in the tile are ordinary rows, which must not notice.
        for (float& x : tile.x) x = static_cast<float>(random.normal());
        fill(tile, row, random);
        tile.run(kernels);
        for (std::int64_t i = 0; i < tile.rows; ++i) tile.check_row(i);
      }
    }
  }
}

// What GELU leaves: most levels are small. run() compares the norms.
TEST_EACH_ISA(quantize_tile_of_rows_whose_norms_are_finite) {
  Random random(13);
  for (std::int64_t rows = 1; rows <= kRowTile; ++rows) {
    for (const std::int64_t columns : {112, 128, 144, 256, 768, 3072}) {
      for (std::int64_t largest = 0; largest < rows; ++largest) {
        const check::Scope scope("rows ", rows, ", columns ", columns, ", the largest ", largest);
        Tile tile(rows, columns, 0, 127);
        for (std::int64_t row = 0; row < rows; ++row) {
          const double spread = row == largest ? 14.0 : 10.0;
          for (std::int64_t c = 0; c < columns; ++c) tile.at(row, c) = static_cast<float>(random.uniform(0.0, spread));
          tile.at(row, random.integer(0, columns - 1)) = 127.0f;
        }
        tile.run(kernels);
        for (std::int64_t row = 0; row < rows; ++row) tile.check_row(row);
      }
    }
  }
}

TEST_EACH_ISA(quantize_tile_uses_the_whole_range) {
  for (const int levels : {127, 255}) {
    Tile tile(3, 16, 0, levels);
    for (std::int64_t c = 0; c < 16; ++c) {
      tile.at(0, c) = 2.0f;
      tile.at(1, c) = -2.0f;
      tile.at(2, c) = c % 2 == 0 ? 0.0f : 5.0f;
    }
    tile.run(kernels);
    CHECK_EQ(tile.zero_point[0], 0);
    CHECK_EQ(tile.zero_point[1], levels);
    for (std::int64_t c = 0; c < 16; ++c) {
      CHECK_EQ(tile.level(0, c), levels);
      CHECK_EQ(tile.level(1, c), 0);
      CHECK_EQ(tile.level(2, c), c % 2 == 0 ? 0 : levels);
    }
  }
}

TEST_EACH_ISA(quantize_tile_gives_a_row_that_is_not_finite_no_scale_and_leaves_the_others_alone) {
  Random random(12);
  const float signaling = std::numeric_limits<float>::signaling_NaN();
  for (const int levels : {127, 255}) {
    for (const std::int64_t at : {0, 5, 17, 47}) {
      for (const auto& [one, other] : {std::pair{INFINITY, 1.0f},
                                       {-INFINITY, 1.0f},
                                       {INFINITY, -INFINITY},
                                       {INFINITY, NAN},
                                       {3e38f, -3e38f},
                                       {NAN, 1.0f},
                                       {-NAN, 0.0f},
                                       {signaling, -1.0f},
                                       {NAN, 3e38f}}) {
        const check::Scope scope("at ", at, ": ", one, " and ", other);
        Tile tile(3, 48, 2, levels);
        tile.make_wide(0, 5, 1.0 / kWideSteps);
        tile.make_wide(1, 20, 1.0 / kWideSteps);
        for (float& x : tile.x) x = static_cast<float>(random.normal());
        tile.at(1, at) = one;
        tile.at(1, (at + 20) % 48) = other;
        tile.run(kernels);
        tile.check_row(0);
        tile.check_row(2);
        CHECK(std::isnan(tile.scale[1]));
        CHECK_EQ(tile.zero_point[1], 0);
        for (std::int64_t c = 0; c < 48; ++c) CHECK_EQ(tile.level(1, c), 0);
        for (std::int64_t i = 0; i < 2; ++i) CHECK_EQ(tile.wide_level(1, i), 0);
      }
    }
  }
  Tile all(1, 48, 0, 255);
  for (float& x : all.x) x = NAN;
  all.run(kernels);
  CHECK(std::isnan(all.scale[0]));
}

}  // namespace
}  // namespace agnews_fast
