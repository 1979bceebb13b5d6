// A quantised DistilBERT: sizes, and views into the mapped model file. Nothing is copied.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "model/tensor_table.h"
#include "runtime/aligned_buffer.h"

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
  // Queries and keys are integers up to this for their products: the most for which a sum over a head stays below 2^30,
  // so that the difference of two scores fits 32 bits. 4095 for heads of 64.
  int score_levels() const;
  // Rows of q, k and v lie a little further apart than their width: at a multiple of 4 KiB apart, the values of one
  // head would share a few cache sets.
  std::int64_t qkv_stride() const { return 3 * context() + kLanes; }
};

// The length of a Linear's list of wide channels, which -1 pads.
inline constexpr std::int64_t kMostWide = 16;

struct Linear {
  Quantization input;
  PackedWeights weights;
  std::size_t index;                  // its place in Model::linears()
  AlignedBuffer<float> window_norms;  // PackedWeights::window_norm, if any
};

// Rows of q, k and v that were computed when the model was made: weight * the scale of q, k or v.
struct ProjectedRows {
  const std::int8_t* weight;  // (rows, 3 x context)
  const float* scale;         // (rows, 3)
};

// The first layer's q, k and v of frequent words, which need no matrix product. Its input is a LayerNorm of word +
// position, so that with the matrix A (its columns times gamma, then less their mean: the LayerNorm's mean goes away)
//   q, k, v = rstd * (A word + A position) + bias,   bias with what beta adds.
struct FirstProjection {
  const std::int32_t* row;  // (vocabulary): where a word is among `words`, or -1: not there
  ProjectedRows words;      // A word
  ProjectedRows positions;  // A position
  const float* bias;        // (3 x context)
};

struct LayerNorm {
  const float* gamma;  // (padded hidden)
  const float* beta;   // (padded hidden)
};

struct EncoderLayer {
  Linear qkv;   // hidden -> q, k, v: 3 x heads x head; q is scaled by 1 / sqrt(hidden / heads). Not in the last layer
  Linear out;   // heads x head -> hidden
  Linear ffn1;  // hidden -> ffn
  Linear ffn2;  // ffn -> hidden
  LayerNorm attention_norm, output_norm;
};

// The last layer's attention. Only the first token of a text has a query there, so that it is cheaper to bring the
// query to the tokens, head by head, than to give every token a key and a value:
//   score(t) = q . (K x(t)) = (K^T q) . x(t),   context = sum of p(t) * (V x(t)) = V (sum of p(t) * x(t)).
// The bias of a key adds the same to every score, which softmax does not see; that of a value goes through, since the
// p(t) add up to 1.
struct FirstTokenAttention {
  Linear query;  // hidden -> heads x head, scaled as in qkv
  Linear key;    // head -> hidden for each head: K^T of head i is columns i x padded hidden and on
  Linear value;  // hidden -> heads x head: V of head i is columns i x head and on
};

struct Model {
  // Takes every tensor from the table and checks all that the kernels rely on. Throws ModelError.
  // Only ffn2 has window norms, if the kernels have: what the activation function leaves is small enough.
  Model(const Config& config, TensorTable& tensors, const Kernels& kernels);

  Config config;
  const std::int8_t* word;  // (vocabulary, padded hidden)
  const float* word_scale;  // (vocabulary)
  const float* position;    // (positions, padded hidden)
  LayerNorm embedding_norm;
  FirstProjection first_projection;  // unless the first layer is the last: that has no qkv
  std::vector<EncoderLayer> layers;
  FirstTokenAttention last_attention;
  const float* pre_classifier;       // (padded hidden / 16, hidden, 16): [out / 16][in][16 outs]
  const float* pre_classifier_bias;  // (padded hidden)
  const float* classifier;           // (padded labels / 16, hidden, 16)
  const float* classifier_bias;      // (padded labels)

  std::int64_t hidden_k;  // the largest k of what is computed from hidden states or the attention's context
  std::int64_t ffn_k;     // the largest k of ffn2

  // Every Linear, in the order of a forward pass.
  std::vector<const Linear*> linears() const;
};

}  // namespace agnews_fast
