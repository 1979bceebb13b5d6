#include <cmath>

#include "arrays.h"
#include "check.h"
#include "kernels/each_isa.h"

namespace agnews_fast {
namespace {

TEST_EACH_ISA(transpose_moves_every_element_and_pads_with_zeros) {
  Random random(60);
  for (const std::int64_t columns : {16, 48, 64}) {
    for (std::int64_t rows = 1; rows <= 65; ++rows) {
      for (const std::int64_t extra : {0, 16}) {
        const check::Scope scope("rows ", rows, ", columns ", columns, ", extra stride ", extra);
        const std::int64_t padded = (rows + kLanes - 1) / kLanes * kLanes;
        const std::int64_t stride = columns + extra, out_stride = padded + extra;
        Array<float> x((rows - 1) * stride + columns);
        for (float& value : x) value = static_cast<float>(random.normal());
        x[0] = -0.0f;
        Array<float> out((columns - 1) * out_stride + padded, kUntouched), expected(out.size(), kUntouched);
        for (std::int64_t c = 0; c < columns; ++c) {
          for (std::int64_t r = 0; r < padded; ++r) expected[c * out_stride + r] = r < rows ? x[r * stride + c] : 0.0f;
        }
        kernels.transpose(x.data(), stride, rows, columns, out.data(), out_stride);
        CHECK_SAME_BITS(out.data(), expected.data(), out.size());
      }
    }
  }
}

}  // namespace
}  // namespace agnews_fast
