#include "model/forward.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace agnews_fast {

Range row_tiles(const Member& member, std::int64_t rows) {
  const Range tiles = member.share((rows + kRowTile - 1) / kRowTile);
  return {tiles.begin * kRowTile, std::min(tiles.end * kRowTile, rows)};
}

void Forward::run(const Batch& batch, const Member& member, float* logits, float* first_token) {
  embed(batch, member);
  for (const EncoderLayer& layer : model_.layers) {
    const bool last = &layer == &model_.layers.back();
    if (last) {
      last_attention(batch, member);
    } else {
      attention(layer.qkv, batch, member);
    }
    after_attention(layer, member, last ? ws_.firsts : ws_.tokens);
  }
  head(batch, member, logits, first_token);
}

void Forward::embed(const Batch& batch, const Member& member) {
  const StageTimer timer(observer_, Stage::kEmbeddings);
  const std::int64_t hidden = model_.config.padded_hidden();
  const LayerNorm& norm = model_.embedding_norm;
  const std::int64_t first = batch.offsets[0];
  const Range rows = row_tiles(member, ws_.tokens.rows);
  std::int64_t text = 0;
  for (std::int64_t row = rows.begin; row < rows.end; ++row) {
    while (batch.offsets[text + 1] - first <= row) ++text;
    const std::int64_t position = row - (batch.offsets[text] - first);
    const std::int32_t id = batch.ids[first + row];
    kernels_.embed(model_.word + id * hidden, model_.word_scale[id], model_.position + position * hidden, hidden,
                   ws_.tokens.hidden.data() + row * hidden);
  }
  float* x = ws_.tokens.hidden.data() + rows.begin * hidden;
  kernels_.layer_norm(x, nullptr, hidden, rows.end - rows.begin, model_.config.hidden, norm.gamma, norm.beta,
                      model_.config.layer_norm_epsilon, x, ws_.embedding_rstd.data() + rows.begin);
}

void Forward::after_attention(const EncoderLayer& layer, const Member& member, Rows& x) {
  quantize(x.qkv.data(), model_.config.qkv_stride(), x.rows, layer.out, member, x.quantized);
  member.barrier();
  project(Stage::kOut, layer.out, x.quantized.view(x.rows, layer.out), member, panels_of(layer.out), Activation::kNone,
          x.projected.data(), model_.config.padded_hidden());
  member.barrier();
  add_norm(layer.attention_norm, member, x);
  quantize_hidden(x, layer.ffn1, member);
  feed_forward(layer, member, x);
  add_norm(layer.output_norm, member, x);
}

void Forward::feed_forward(const EncoderLayer& layer, const Member& member, Rows& x) {
  const std::int64_t ffn = model_.config.padded_ffn(), hidden = model_.config.padded_hidden();
  const PackedRows all = x.quantized.view(x.rows, layer.ffn1);
  for (std::int64_t begin = 0; begin < x.rows; begin += kFfnRows) {
    const std::int64_t rows = std::min(kFfnRows, x.rows - begin);
    const PackedRows block = {all.data + begin * all.k,
                              all.scale + begin,
                              all.zero_point + begin,
                              rows,
                              all.k,
                              nullptr,
                              all.wide + begin * layer.ffn1.input.wide};
    project(Stage::kFfn1, layer.ffn1, block, member, panels_of(layer.ffn1), model_.config.activation, ws_.inner.data(),
            ffn);
    member.barrier();
    quantize(ws_.inner.data(), ffn, rows, layer.ffn2, member, ws_.inner_quantized);
    member.barrier();
    project(Stage::kFfn2, layer.ffn2, ws_.inner_quantized.view(rows, layer.ffn2), member, panels_of(layer.ffn2),
            Activation::kNone, x.projected.data() + begin * hidden, hidden);
    member.barrier();
  }
}

void Forward::quantize(const float* x, std::int64_t stride, std::int64_t rows, const Linear& linear,
                       const Member& member, QuantizedRows& out) {
  const StageTimer timer(observer_, Stage::kQuantize);
  const Range share = row_tiles(member, rows);
  float* norms = linear.weights.window_norm == nullptr ? nullptr : out.window_norm.data();
  const std::int64_t windows = long_windows(linear.input.k);
  for (std::int64_t row = share.begin; row < share.end; row += kRowTile) {
    kernels_.quantize_tile(x + row * stride, stride, std::min<std::int64_t>(kRowTile, rows - row), linear.input,
                           out.packed.data() + row * linear.input.k, out.wide.data() + row * linear.input.wide,
                           out.scale.data() + row, out.zero_point.data() + row,
                           norms == nullptr ? nullptr : norms + row / kRowTile * windows);
  }
  if (observer_.maxima != nullptr) {
    std::vector<float>& most = (*observer_.maxima)[linear.index];
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t c = 0; c < linear.input.columns; ++c) {
        most[static_cast<std::size_t>(c)] = std::max(most[static_cast<std::size_t>(c)], std::fabs(x[row * stride + c]));
      }
    }
  }
}

void Forward::quantize_hidden(Rows& x, const Linear& linear, const Member& member) {
  quantize(x.hidden.data(), model_.config.padded_hidden(), x.rows, linear, member, x.quantized);
  member.barrier();
}

void Forward::project(Stage stage, const Linear& linear, const PackedRows& x, const Member& member, Range panels,
                      Activation activation, float* out, std::int64_t out_stride) {
  const StageTimer timer(observer_, stage);
  member.deal(panels.end - panels.begin, kDealtPanels, [&](Range part) {
    kernels_.gemm(x, linear.weights, panels.begin + part.begin, panels.begin + part.end, activation, out, out_stride);
  });
}

void Forward::add_norm(const LayerNorm& norm, const Member& member, Rows& x) {
  const StageTimer timer(observer_, Stage::kLayerNorm);
  const std::int64_t hidden = model_.config.padded_hidden();
  const Range rows = row_tiles(member, x.rows);
  float* residual = x.hidden.data() + rows.begin * hidden;
  kernels_.layer_norm(x.projected.data() + rows.begin * hidden, residual, hidden, rows.end - rows.begin,
                      model_.config.hidden, norm.gamma, norm.beta, model_.config.layer_norm_epsilon, residual, nullptr);
}

void Forward::head(const Batch& batch, const Member& member, float* logits, float* first_token) {
  const StageTimer timer(observer_, Stage::kHead);
  const Config& config = model_.config;
  const std::int64_t hidden = config.padded_hidden(), labels = config.padded_labels();
  // out = x * weight + bias for some rows, or for some panels of 16 columns.
  const auto dense = [&](const float* x, Range rows, const float* weight, const float* bias, Range panels, float* out,
                         std::int64_t out_stride) {
    const std::int64_t first = panels.begin * kLanes, columns = (panels.end - panels.begin) * kLanes;
    kernels_.gemm_f32(x + rows.begin * hidden, hidden, weight + first * config.hidden, kLanes, config.hidden * kLanes,
                      rows.end - rows.begin, columns, config.hidden, nullptr, bias + first,
                      out + rows.begin * out_stride + first, out_stride);
  };
  const float* x = ws_.firsts.hidden.data();
  float* pooled = ws_.pooled.data();
  member.barrier();
  dense(x, {0, batch.texts}, model_.pre_classifier, model_.pre_classifier_bias, member.share(hidden / kLanes), pooled,
        hidden);
  member.barrier();
  const Range texts = row_tiles(member, batch.texts);
  for (std::int64_t i = texts.begin * hidden; i < texts.end * hidden; ++i) {
    pooled[i] = pooled[i] <= 0.0f ? 0.0f : pooled[i];  // a NaN stays, so that the logits show it
  }
  dense(pooled, texts, model_.classifier, model_.classifier_bias, {0, labels / kLanes}, ws_.logits.data(), labels);
  for (std::int64_t text = texts.begin; text < texts.end; ++text) {
    std::memcpy(logits + text * config.labels, ws_.logits.data() + text * labels,
                static_cast<std::size_t>(config.labels) * sizeof(float));
    std::memcpy(first_token + text * config.hidden, x + text * hidden,
                static_cast<std::size_t>(config.hidden) * sizeof(float));
  }
}

}  // namespace agnews_fast
