#include <cmath>

#include "arrays.h"
#include "check.h"
#include "kernels/each_isa.h"

namespace agnews_fast {
namespace {

TEST_EACH_ISA(embed_scales_the_word_and_adds_the_position) {
  Random random(1);
  for (const std::int64_t columns : {16, 32, 48, 112, 768, 3104}) {
    // Rows of an embedding table start on 16-byte boundaries only, as here the second.
    for (const std::int64_t row : {0, 1}) {
      const check::Scope scope("columns ", columns, ", row ", row);
      Array<std::int8_t> table(row * 16 + columns);
      for (std::int8_t& x : table) x = static_cast<std::int8_t>(random.integer(-128, 127));
      const std::int8_t* word = table.data() + row * 16;
      Array<float> position(columns), out(columns, NAN), specified(columns, NAN);
      for (float& x : position) x = static_cast<float>(random.uniform(-1, 1));
      for (const float scale : {0.0f, 1e-40f, 0.0004f, 0.013f, 1e30f}) {
        kernels.embed(word, scale, position.data(), columns, out.data());
        scalar_kernels().embed(word, scale, position.data(), columns, specified.data());
        CHECK_SAME_BITS(out.data(), specified.data(), columns);
        for (std::int64_t c = 0; c < columns; ++c) {
          // One rounding to float; the double behind it is exact to 2^-53.
          const double exact = static_cast<double>(word[c]) * scale + position[c];
          CHECK_NEAR(out[c], exact, 1.01 * kUnitRoundoff * std::fabs(exact));
        }
      }
    }
  }
}

}  // namespace
}  // namespace agnews_fast
