// A quantised DistilBERT: sizes, and views into the mapped model file. Nothing is copied.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "model/tensor_table.h"

namespace agnews_fast {

inline constexpr std::int64_t round_up(std::int64_t n, std::int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

struct Config {
  std::int64_t layers, hidden, heads, ffn, vocabulary, positions, labels;
  Activation activation;
  float layer_norm_epsilon;
  int levels;  // activations are 0..levels: 127 or 255
  int depth;   // 4 or 8, see PackedWeights

  // Throws ModelError unless every size is within its limits.
  void check() const;

  std::int64_t padded_hidden() const { return round_up(hidden, kLanes); }
  std::int64_t padded_ffn() const { return round_up(ffn, kLanes); }
  std::int64_t padded_labels() const { return round_up(labels, kLanes); }
  // Each head's columns are padded by themselves, so that every head starts on a vector.
  std::int64_t head() const { return round_up(hidden / heads, kLanes); }
  std::int64_t context() const { return heads * head(); }
};

struct Linear {
  Quantization input;
  PackedWeights weights;
  std::size_t index;  // its place among all: qkv, out, ffn1, ffn2 of layer 0, of layer 1, ...
};

struct LayerNorm {
  const float* gamma;  // (padded hidden)
  const float* beta;   // (padded hidden)
};

struct EncoderLayer {
  Linear qkv;   // hidden -> q, k, v: 3 x heads x head; q is scaled by 1 / sqrt(hidden / heads)
  Linear out;   // heads x head -> hidden
  Linear ffn1;  // hidden -> ffn
  Linear ffn2;  // ffn -> hidden
  LayerNorm attention_norm, output_norm;
};

struct Model {
  // Takes every tensor from the table and checks all that the kernels rely on. Throws ModelError.
  Model(const Config& config, TensorTable& tensors);

  Config config;
  const std::int8_t* word;  // (vocabulary, padded hidden)
  const float* word_scale;  // (vocabulary)
  const float* position;    // (positions, padded hidden)
  LayerNorm embedding_norm;
  std::vector<EncoderLayer> layers;
  const float* pre_classifier;       // (hidden, padded hidden): [in][out]
  const float* pre_classifier_bias;  // (padded hidden)
  const float* classifier;           // (hidden, padded labels): [in][out]
  const float* classifier_bias;      // (padded labels)
};

}  // namespace agnews_fast
