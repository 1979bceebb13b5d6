// The proof that integer arithmetic is exact, done once when a model is loaded.
#pragma once

#include <string>

#include "kernels/kernels.h"

namespace agnews_fast {

// Checks one packed matrix for activations 0..levels:
//   * 16 bits: in every window of 2 * depth weights that meet in one 16-bit lane of a kernel (two neighbouring k of each
//     of `depth` consecutive groups), levels * max(sum of positives, -sum of negatives) <= 32767;
//   * 32 bits: for every column, levels * sum of |weight| (outliers included) <= 2^30, so that a sum less its zero-point
//     correction fits; and levels * kWideSteps * sum of |weight| of the wide channels <= 2^29, so that both fit;
//   * no weight is -128, column_sum is what the weights add up to, and outliers lie inside the matrix
//     (`outliers` is the length of their lists, which may be padded).
// Throws ModelError naming `where` otherwise.
void check_weights(const Kernels& kernels, const PackedWeights& w, std::int64_t outliers, int levels,
                   const std::string& where);

}  // namespace agnews_fast
