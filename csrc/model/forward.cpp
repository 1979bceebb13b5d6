#include "model/forward.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

namespace agnews_fast {
namespace {

// Packed tiles may be read up to 64 bytes past their end.
constexpr std::int64_t kOverread = 64;

// Rows of q, k and v lie a little further apart than their width: at a multiple of 4 KiB apart, the values of one head
// would share a few cache sets.
std::int64_t qkv_stride_of(const Config& config) { return 3 * config.context() + kLanes; }

PackedRows packed(Rows& x, std::int64_t k) { return {x.packed.data(), x.scale.data(), x.zero_point.data(), x.rows, k}; }

// Rows `begin` to `begin + rows` of packed rows; begin is a multiple of kRowTile.
PackedRows block(const PackedRows& x, std::int64_t begin, std::int64_t rows) {
  return {x.data + begin * x.k, x.scale + begin, x.zero_point + begin, rows, x.k};
}

// Adds the time it lives to a stage, if somebody asked for that.
class StageTimer {
 public:
  StageTimer(const Observer& observer, Stage stage)
      : total_(observer.seconds == nullptr ? nullptr : &(*observer.seconds)[static_cast<std::size_t>(stage)]) {
    if (total_ != nullptr) start_ = std::chrono::steady_clock::now();
  }
  ~StageTimer() {
    if (total_ != nullptr) *total_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }
  StageTimer(const StageTimer&) = delete;
  StageTimer& operator=(const StageTimer&) = delete;

 private:
  double* total_;
  std::chrono::steady_clock::time_point start_;
};

Range row_tiles(const Member& member, std::int64_t rows) {
  const Range tiles = member.share((rows + kRowTile - 1) / kRowTile);
  return {tiles.begin * kRowTile, std::min(tiles.end * kRowTile, rows)};
}

void grow_rows(Rows& x, const Model& model, std::int64_t rows) {
  const Config& config = model.config;
  const std::int64_t hidden = config.padded_hidden();
  std::int64_t k = 0;
  for (const EncoderLayer& layer : model.layers) {
    k = std::max({k, layer.qkv.input.k, layer.out.input.k, layer.ffn1.input.k});
  }
  x.rows = rows;
  x.hidden.grow(static_cast<std::size_t>(rows * hidden));
  x.qkv.grow(static_cast<std::size_t>(rows * qkv_stride_of(config)));
  x.projected.grow(static_cast<std::size_t>(rows * hidden));
  x.packed.grow(static_cast<std::size_t>(rows * k + kOverread));
  x.scale.grow(static_cast<std::size_t>(rows));
  x.zero_point.grow(static_cast<std::size_t>(rows));
}

}  // namespace

void Workspace::grow(const Model& model, const Batch& batch, int members) {
  const Config& config = model.config;
  const std::int64_t inner_rows = std::min(kFfnRows, batch.tokens());
  std::int64_t inner_k = 0;
  for (const EncoderLayer& layer : model.layers) inner_k = std::max(inner_k, layer.ffn2.input.k);
  grow_rows(tokens, model, batch.tokens());
  grow_rows(firsts, model, batch.texts);
  inner.grow(static_cast<std::size_t>(inner_rows * config.padded_ffn()));
  inner_packed.grow(static_cast<std::size_t>(inner_rows * inner_k + kOverread));
  inner_scale.grow(static_cast<std::size_t>(inner_rows));
  inner_zero_point.grow(static_cast<std::size_t>(inner_rows));
  pooled.grow(static_cast<std::size_t>(batch.texts * config.padded_hidden()));
  logits.grow(static_cast<std::size_t>(batch.texts * config.padded_labels()));
  const std::int64_t padded_tokens = round_up(batch.longest(), kLanes);
  attention.resize(std::max(attention.size(), static_cast<std::size_t>(members)));
  for (Attention& scratch : attention) {
    scratch.keys.grow(static_cast<std::size_t>(config.head() * padded_tokens));
    scratch.scores.grow(static_cast<std::size_t>(kQueryRows * padded_tokens));
    scratch.inverse_sum.grow(static_cast<std::size_t>(kQueryRows));
  }
}

std::int64_t Forward::qkv_stride() const { return qkv_stride_of(model_.config); }

void Forward::run(const Batch& batch, const Member& member, float* logits, float* first_token) {
  embed(batch, member);
  quantize_hidden(ws_.tokens, model_.layers.front().qkv, member);
  for (const EncoderLayer& layer : model_.layers) {
    encoder_layer(layer, batch, member, &layer == &model_.layers.back());
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
                      model_.config.layer_norm_epsilon, x);
}

void Forward::encoder_layer(const EncoderLayer& layer, const Batch& batch, const Member& member, bool last) {
  // The caller has quantised tokens.hidden for qkv. In the last layer only the first token of each text goes on.
  Rows& tokens = ws_.tokens;
  Rows& x = last ? ws_.firsts : tokens;
  const std::int64_t panels = layer.qkv.weights.n / kPanel;
  const std::int64_t query_panels = last ? panels / 3 : 0;
  if (last) {
    take_firsts(batch, member);
    quantize_hidden(x, layer.qkv, member);
    project(Stage::kQkv, layer.qkv, packed(x, layer.qkv.input.k), member, {0, query_panels}, Activation::kNone,
            x.qkv.data(), qkv_stride());
  }
  project(Stage::kQkv, layer.qkv, packed(tokens, layer.qkv.input.k), member, {query_panels, panels}, Activation::kNone,
          tokens.qkv.data(), qkv_stride());
  member.barrier();

  attention(batch, member, x, last);
  member.barrier();
  quantize(x.qkv.data(), qkv_stride(), x.rows, layer.out, member, x.packed.data(), x.scale.data(), x.zero_point.data());
  member.barrier();
  project(Stage::kOut, layer.out, packed(x, layer.out.input.k), member, {0, layer.out.weights.n / kPanel},
          Activation::kNone, x.projected.data(), model_.config.padded_hidden());
  member.barrier();
  add_norm(layer.attention_norm, member, x);
  quantize_hidden(x, layer.ffn1, member);

  feed_forward(layer, member, x);
  add_norm(layer.output_norm, member, x);
  if (!last) quantize_hidden(x, (&layer + 1)->qkv, member);
}

void Forward::take_firsts(const Batch& batch, const Member& member) {
  const std::int64_t hidden = model_.config.padded_hidden();
  const Range rows = row_tiles(member, batch.texts);
  for (std::int64_t text = rows.begin; text < rows.end; ++text) {
    const std::int64_t from = batch.offsets[text] - batch.offsets[0];
    std::memcpy(ws_.firsts.hidden.data() + text * hidden, ws_.tokens.hidden.data() + from * hidden,
                static_cast<std::size_t>(hidden) * sizeof(float));
  }
  member.barrier();
}

void Forward::quantize(const float* x, std::int64_t stride, std::int64_t rows, const Linear& linear,
                       const Member& member, std::uint8_t* packed, float* scale, std::int32_t* zero_point) {
  const StageTimer timer(observer_, Stage::kQuantize);
  const Range share = row_tiles(member, rows);
  for (std::int64_t row = share.begin; row < share.end; row += kRowTile) {
    kernels_.quantize_tile(x + row * stride, stride, std::min<std::int64_t>(kRowTile, rows - row), linear.input,
                           packed + row * linear.input.k, scale + row, zero_point + row);
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
  quantize(x.hidden.data(), model_.config.padded_hidden(), x.rows, linear, member, x.packed.data(), x.scale.data(),
           x.zero_point.data());
  member.barrier();
}

void Forward::project(Stage stage, const Linear& linear, const PackedRows& x, const Member& member, Range panels,
                      Activation activation, float* out, std::int64_t out_stride) {
  const StageTimer timer(observer_, stage);
  const Range share = member.share(panels.end - panels.begin);
  kernels_.gemm(x, linear.weights, panels.begin + share.begin, panels.begin + share.end, activation, out, out_stride);
}

void Forward::attention(const Batch& batch, const Member& member, Rows& queries, bool first_only) {
  const StageTimer timer(observer_, Stage::kAttention);
  const Config& config = model_.config;
  const std::int64_t head_size = config.head(), stride = qkv_stride();
  Workspace::Attention& scratch = ws_.attention[static_cast<std::size_t>(member.rank)];
  float* keys = scratch.keys.data();
  float* scores = scratch.scores.data();
  float* inverse_sum = scratch.inverse_sum.data();

  const Range share = member.share(batch.texts * config.heads);
  for (std::int64_t item = share.begin; item < share.end; ++item) {
    const std::int64_t text = item / config.heads, head = item % config.heads;
    const std::int64_t first = batch.offsets[text] - batch.offsets[0], tokens = batch.length(text);
    const std::int64_t padded = round_up(tokens, kLanes);
    const float* k = ws_.tokens.qkv.data() + first * stride + config.context() + head * head_size;
    const float* v = k + config.context();
    kernels_.transpose(k, stride, tokens, head_size, keys, padded);

    const std::int64_t first_query = first_only ? text : first, all = first_only ? 1 : tokens;
    for (std::int64_t begin = 0; begin < all; begin += kQueryRows) {
      const std::int64_t rows = std::min(kQueryRows, all - begin);
      // q (rows, head), scores (rows, padded tokens); the context takes the place of q.
      float* q = queries.qkv.data() + (first_query + begin) * stride + head * head_size;
      kernels_.gemm_f32(q, stride, keys, padded, rows, padded, head_size, nullptr, nullptr, scores, padded);
      kernels_.softmax(scores, padded, rows, tokens, inverse_sum);
      kernels_.gemm_f32(scores, padded, v, stride, rows, head_size, tokens, inverse_sum, nullptr, q, stride);
    }
  }
}

void Forward::feed_forward(const EncoderLayer& layer, const Member& member, Rows& x) {
  const std::int64_t ffn = model_.config.padded_ffn(), hidden = model_.config.padded_hidden();
  for (std::int64_t begin = 0; begin < x.rows; begin += kFfnRows) {
    const std::int64_t rows = std::min(kFfnRows, x.rows - begin);
    project(Stage::kFfn1, layer.ffn1, block(packed(x, layer.ffn1.input.k), begin, rows), member,
            {0, layer.ffn1.weights.n / kPanel}, model_.config.activation, ws_.inner.data(), ffn);
    member.barrier();
    quantize(ws_.inner.data(), ffn, rows, layer.ffn2, member, ws_.inner_packed.data(), ws_.inner_scale.data(),
             ws_.inner_zero_point.data());
    member.barrier();
    const PackedRows inner = {ws_.inner_packed.data(), ws_.inner_scale.data(), ws_.inner_zero_point.data(), rows,
                              layer.ffn2.input.k};
    project(Stage::kFfn2, layer.ffn2, inner, member, {0, layer.ffn2.weights.n / kPanel}, Activation::kNone,
            x.projected.data() + begin * hidden, hidden);
    member.barrier();
  }
}

void Forward::add_norm(const LayerNorm& norm, const Member& member, Rows& x) {
  const StageTimer timer(observer_, Stage::kLayerNorm);
  const std::int64_t hidden = model_.config.padded_hidden();
  const Range rows = row_tiles(member, x.rows);
  float* residual = x.hidden.data() + rows.begin * hidden;
  kernels_.layer_norm(x.projected.data() + rows.begin * hidden, residual, hidden, rows.end - rows.begin,
                      model_.config.hidden, norm.gamma, norm.beta, model_.config.layer_norm_epsilon, residual);
}

void Forward::head(const Batch& batch, const Member& member, float* logits, float* first_token) {
  const StageTimer timer(observer_, Stage::kHead);
  const Config& config = model_.config;
  const std::int64_t hidden = config.padded_hidden(), labels = config.padded_labels();
  const Range texts = row_tiles(member, batch.texts);
  const std::int64_t count = texts.end - texts.begin;
  if (count <= 0) return;
  const float* x = ws_.firsts.hidden.data() + texts.begin * hidden;
  float* pooled = ws_.pooled.data() + texts.begin * hidden;
  float* padded_logits = ws_.logits.data() + texts.begin * labels;
  kernels_.gemm_f32(x, hidden, model_.pre_classifier, hidden, count, hidden, config.hidden, nullptr,
                    model_.pre_classifier_bias, pooled, hidden);
  for (std::int64_t i = 0; i < count * hidden; ++i) pooled[i] = pooled[i] > 0.0f ? pooled[i] : 0.0f;
  kernels_.gemm_f32(pooled, hidden, model_.classifier, labels, count, labels, config.hidden, nullptr,
                    model_.classifier_bias, padded_logits, labels);
  for (std::int64_t i = 0; i < count; ++i) {
    std::memcpy(logits + (texts.begin + i) * config.labels, padded_logits + i * labels,
                static_cast<std::size_t>(config.labels) * sizeof(float));
    std::memcpy(first_token + (texts.begin + i) * config.hidden, x + i * hidden,
                static_cast<std::size_t>(config.hidden) * sizeof(float));
  }
}

}  // namespace agnews_fast
