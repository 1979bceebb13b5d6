#include <cmath>

#include "arrays.h"
#include "check.h"
#include "kernels/each_isa.h"

namespace agnews_fast {
namespace {

TEST_EACH_ISA(project_embedding_adds_scaled_rows_and_normalizes) {
  Random random(1);
  for (const std::int64_t columns : {16, 32, 48, 112, 768, 3104}) {
    // Rows of a table start on 16-byte boundaries only, as here the second.
    for (const std::int64_t row : {0, 1}) {
      const check::Scope scope("columns ", columns, ", row ", row);
      Array<std::int8_t> words(row * 16 + columns), positions(row * 16 + columns);
      for (std::int8_t& x : words) x = static_cast<std::int8_t>(random.integer(-128, 127));
      for (std::int8_t& x : positions) x = static_cast<std::int8_t>(random.integer(-128, 127));
      const std::int8_t *word = words.data() + row * 16, *position = positions.data() + row * 16;
      Array<float> bias(columns), out(columns, NAN), specified(columns, NAN);
      for (float& x : bias) x = static_cast<float>(random.uniform(-1, 1));
      for (const float word_scale : {0.0f, 1e-40f, 0.0004f, 1e20f}) {
        for (const float position_scale : {0.0f, 0.0003f, 1e-42f}) {
          for (const float rstd : {0.3f, 17.0f, 1e6f}) {
            const auto run = [&](const Kernels& some, Array<float>& to) {
              some.project_embedding(word, word_scale, position, position_scale, rstd, bias.data(), columns, to.data());
            };
            run(kernels, out);
            run(scalar_kernels(), specified);
            CHECK_SAME_BITS(out.data(), specified.data(), columns);
            for (std::int64_t c = 0; c < columns; ++c) {
              const double of_word = static_cast<double>(word[c]) * word_scale;
              const double of_position = static_cast<double>(position[c]) * position_scale;
              const double exact = (of_word + of_position) * rstd + bias[c];
              // Three roundings to float, of which those of denormal numbers are absolute.
              const double sum = std::fabs(of_position) + std::fabs(of_word + of_position);
              CHECK_NEAR(out[c], exact,
                         1.01 * (rstd * (kUnitRoundoff * sum + 0x1p-149) + kUnitRoundoff * std::fabs(exact)));
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace agnews_fast
