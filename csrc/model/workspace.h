// The memory of a forward pass.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/kernels.h"
#include "model/batch.h"
#include "model/model.h"
#include "runtime/aligned_buffer.h"

namespace agnews_fast {

inline constexpr std::int64_t kFfnRows = 96;    // rows of a block of the feed-forward network, a multiple of kRowTile
inline constexpr std::int64_t kQueryRows = 48;  // queries scored at a time, a multiple of kRowTile
inline constexpr std::int64_t kTextBlock = 12;  // texts whose last attention is computed together, likewise

// Rows quantised for a matrix product.
struct QuantizedRows {
  void grow(std::int64_t rows, std::int64_t k);
  // The first `rows` of them, as they were quantised for `linear`.
  PackedRows view(std::int64_t rows, const Linear& linear) {
    const float* norms = linear.weights.window_norm == nullptr ? nullptr : window_norm.data();
    return {packed.data(), scale.data(), zero_point.data(), rows, linear.input.k, norms, wide.data()};
  }

  AlignedBuffer<std::uint8_t> packed;      // tiles of (rows, k)
  AlignedBuffer<std::int16_t> wide;        // tiles of (rows, wide channels)
  AlignedBuffer<float> scale;              // (rows)
  AlignedBuffer<std::int32_t> zero_point;  // (rows)
  AlignedBuffer<float> window_norm;        // (tiles, long_windows(k)), for a Linear that has them
};

// Float rows of activations and the same rows quantised for the next matrix product.
struct Rows {
  void grow(const Model& model, std::int64_t rows);

  std::int64_t rows = 0;
  AlignedBuffer<float> hidden;     // (rows, padded hidden)
  AlignedBuffer<float> qkv;        // (rows, qkv stride); the context replaces q
  AlignedBuffer<float> projected;  // (rows, padded hidden): output of `out` and `ffn2`, before the residual
  QuantizedRows quantized;
};

// All that a forward pass of up to so many tokens and texts needs; kept and reused, grows only.
struct Workspace {
  void grow(const Model& model, const Batch& batch, int members);

  Rows tokens;  // every token
  Rows firsts;  // the first token of each text, which is all that the last layer computes
  // One block of the feed-forward network, sized to stay in the second-level cache.
  AlignedBuffer<float> inner;                 // (kFfnRows, padded ffn)
  QuantizedRows inner_quantized;              // (kFfnRows)
  AlignedBuffer<float> embedding_rstd;        // (tokens): what the LayerNorm of the embeddings multiplied by
  AlignedBuffer<std::int64_t> computed_rows;  // (tokens): the rows that Model::first_projection lacks, of which there
  std::int64_t computed = 0;                  // are so many
  AlignedBuffer<float> by_head;               // (kTextBlock, heads, padded hidden): see Forward::last_attention
  AlignedBuffer<float> pooled;                // (texts, padded hidden)
  AlignedBuffer<float> logits;                // (texts, padded labels)

  struct Attention {
    // One head of one text, as operands of 16-bit products.
    AlignedBuffer<std::int16_t> integer_queries;  // (tokens, head)
    AlignedBuffer<std::int16_t> integer_keys;     // (head, padded tokens)
    AlignedBuffer<std::int16_t> integer_values;   // (tokens, head), an even number of tokens
    AlignedBuffer<std::int32_t> integer_scores;   // (kQueryRows, padded tokens)
    AlignedBuffer<std::int16_t> weights;          // (kQueryRows, padded tokens)
    // For the last layer.
    QuantizedRows rows;                    // (kTextBlock): one head of some texts
    AlignedBuffer<float> queries;          // (padded hidden, padded heads): one text's, transposed
    AlignedBuffer<float> scores_by_token;  // (tokens, padded heads)
    AlignedBuffer<float> scores;           // (padded heads, padded tokens)
    AlignedBuffer<float> inverse_sum;      // (padded heads)
  };
  std::vector<Attention> attention;  // one a member
};

}  // namespace agnews_fast
