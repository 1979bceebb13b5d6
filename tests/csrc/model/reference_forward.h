// The forward pass as the paper has it, in double precision, on plain matrices.
#pragma once

#include <cstdint>
#include <vector>

#include "model/random_model.h"

namespace agnews_fast {

struct Reference {
  std::vector<double> logits;       // (labels)
  std::vector<double> first_token;  // (hidden)
  // The largest magnitude of each input of qkv (in the first layer: of words that first_projection lacks), out, ffn1, ffn2 of each layer; in the last layer of query, key, value,
  // out, ffn1, ffn2, which are computed for the first token alone.
  std::vector<std::vector<double>> maxima;
};

// One text. quantized: with first_projection's rows of the first layer, the inputs of each Linear rounded to levels, row
// by row, and a head's queries, keys, values and weights to 16-bit integers, as kernels.h defines it.
Reference reference_forward(const PlainModel& model, const std::int32_t* ids, std::int64_t tokens, bool quantized);

}  // namespace agnews_fast
