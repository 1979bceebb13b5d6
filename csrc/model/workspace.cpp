#include "model/workspace.h"

#include <algorithm>

namespace agnews_fast {
namespace {

std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }

}  // namespace

void QuantizedRows::grow(std::int64_t rows, std::int64_t k) {
  packed.grow(size(rows * k));
  wide.grow(size(rows * kMostWide));
  scale.grow(size(rows));
  zero_point.grow(size(rows));
  window_norm.grow(size(round_up(rows, kRowTile) / kRowTile * long_windows(k)));
}

void Rows::grow(const Model& model, std::int64_t wanted) {
  const std::int64_t padded_hidden = model.config.padded_hidden();
  rows = wanted;
  hidden.grow(size(rows * padded_hidden));
  qkv.grow(size(rows * model.config.qkv_stride()));
  projected.grow(size(rows * padded_hidden));
  quantized.grow(rows, model.hidden_k);
}

void Workspace::grow(const Model& model, const Batch& batch, int members) {
  const Config& config = model.config;
  const std::int64_t padded_tokens = round_up(batch.longest(), kLanes), padded_heads = round_up(config.heads, kLanes);
  const std::int64_t inner_rows = std::min(kFfnRows, batch.tokens()), block = std::min(kTextBlock, batch.texts);
  tokens.grow(model, batch.tokens());
  firsts.grow(model, batch.texts);
  inner.grow(size(inner_rows * config.padded_ffn()));
  inner_quantized.grow(inner_rows, model.ffn_k);
  embedding_rstd.grow(size(batch.tokens()));
  computed_rows.grow(size(batch.tokens()));
  by_head.grow(size(block * config.heads * config.padded_hidden()));
  pooled.grow(size(batch.texts * config.padded_hidden()));
  logits.grow(size(batch.texts * config.padded_labels()));
  attention.resize(std::max(attention.size(), static_cast<std::size_t>(members)));
  for (Attention& scratch : attention) {
    scratch.integer_queries.grow(size(padded_tokens * config.head()));
    scratch.integer_keys.grow(size(padded_tokens * config.head()));
    scratch.integer_values.grow(size(padded_tokens * config.head()));
    scratch.integer_scores.grow(size(kQueryRows * padded_tokens));
    scratch.weights.grow(size(kQueryRows * padded_tokens));
    scratch.rows.grow(block, std::max(model.last_attention.key.input.k, model.last_attention.value.input.k));
    scratch.queries.grow(size(config.padded_hidden() * padded_heads));
    scratch.scores_by_token.grow(size(batch.longest() * padded_heads));
    scratch.scores.grow(size(padded_heads * padded_tokens));
    scratch.inverse_sum.grow(size(padded_heads));
  }
}

}  // namespace agnews_fast
