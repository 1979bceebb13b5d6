#include "model/model.h"

#include <algorithm>
#include <cmath>
#include <sstream>
#include <utility>

#include "model/error.h"
#include "model/overflow.h"

namespace agnews_fast {
namespace {

void check_size(const char* name, std::int64_t value, std::int64_t lowest, std::int64_t highest) {
  if (value < lowest || value > highest) {
    throw ModelError(std::string("config: expected ") + name + " from " + std::to_string(lowest) + " to " +
                     std::to_string(highest) + ", got " + std::to_string(value));
  }
}

LayerNorm take_norm(TensorTable& tensors, const std::string& name, std::int64_t columns) {
  return {tensors.floats(name + ".gamma", {columns}), tensors.floats(name + ".beta", {columns})};
}

// How many wide channels a list has: an even number of inputs, then -1.
std::int64_t count_wide(const std::int32_t* channels, std::int64_t inputs, const std::string& name) {
  const std::int64_t wide = std::find(channels, channels + kMostWide, -1) - channels;
  for (std::int64_t i = 0; i < kMostWide; ++i) {
    if (i < wide ? channels[i] < 0 || channels[i] >= inputs : channels[i] != -1) {
      throw ModelError(name + "[" + std::to_string(i) + "]: expected " +
                       (i < wide ? "0 to " + std::to_string(inputs - 1) : "-1 behind the last channel") + ", got " +
                       std::to_string(channels[i]));
    }
  }
  if (wide % 2 != 0) throw ModelError(name + ": expected an even number of channels, got " + std::to_string(wide));
  return wide;
}

Linear take_linear(TensorTable& tensors, const std::string& name, std::int64_t inputs, std::int64_t outputs,
                   const Config& config, const Kernels& kernels) {
  const std::int64_t outliers = tensors.length(name + ".outlier_k");
  if (outliers < 0 || outliers > inputs * outputs) {
    throw ModelError(name + ": expected at most " + std::to_string(inputs * outputs) + " outliers, got " +
                     std::to_string(outliers));
  }
  const std::int64_t k = round_up(inputs, kKBlock), panels = outputs / kPanel;

  Linear linear = {};
  linear.input.inverse_divisor = tensors.floats(name + ".inverse_divisor", {inputs});
  linear.input.wide_channel = tensors.int32s(name + ".wide_channel", {kMostWide});
  linear.input.columns = inputs;
  linear.input.wide = count_wide(linear.input.wide_channel, inputs, name + ".wide_channel");
  linear.input.k = k;
  linear.input.levels = config.levels;
  for (std::int64_t c = 0; c < inputs; ++c) {
    const float x = linear.input.inverse_divisor[c];
    if (!(x > 0.0f && x <= 1.0f)) {
      throw ModelError(name + ".inverse_divisor[" + std::to_string(c) + "]: expected a value in (0, 1], got " +
                       std::to_string(x));
    }
  }

  PackedWeights& w = linear.weights;
  w.data = tensors.int8s(name + ".weight", {panels, k / kGroup, kPanel, kGroup});
  w.scale = tensors.floats(name + ".scale", {outputs});
  w.bias = tensors.floats(name + ".bias", {outputs});
  w.column_sum = tensors.int32s(name + ".column_sum", {outputs});
  w.outlier_begin = tensors.int32s(name + ".outlier_begin", {round_up(panels + 1, kLanes)});
  w.outlier_k = tensors.int32s(name + ".outlier_k", {outliers});
  w.outlier_column = tensors.int32s(name + ".outlier_column", {outliers});
  w.outlier_value = tensors.int32s(name + ".outlier_value", {outliers});
  w.n = outputs;
  w.k = k;
  w.depth = config.depth;
  w.wide = linear.input.wide;
  w.wide_weight = tensors.int16s(name + ".wide_weight", {panels, w.wide / 2, kPanel, 2});
  check_weights(kernels, w, outliers, config.levels, name + ".weight");
  return linear;
}

void add_window_norms(Linear& linear, const Kernels& kernels) {
  PackedWeights& w = linear.weights;
  linear.window_norms.grow(static_cast<std::size_t>(w.n / kPanel * long_windows(w.k)));
  kernels.window_norms(w, linear.window_norms.data());
  w.window_norm = linear.window_norms.data();
}

// int8 rows, which like the other matrices are checked against sums.
const std::int8_t* take_rows(TensorTable& tensors, const std::string& name, std::int64_t rows, std::int64_t columns,
                             const Kernels& kernels) {
  const std::int8_t* weight = tensors.int8s(name + ".weight", {rows, columns});
  const std::int32_t* row_sum = tensors.int32s(name + ".row_sum", {rows});
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int32_t sum = kernels.sum_s8(weight + row * columns, columns);
    if (sum != row_sum[row]) {
      throw ModelError(name + ".weight, row " + std::to_string(row) + ": the numbers add up to " + std::to_string(sum) +
                       ", but row_sum says " + std::to_string(row_sum[row]));
    }
  }
  return weight;
}

ProjectedRows take_projected_rows(TensorTable& tensors, const std::string& name, std::int64_t rows,
                                  std::int64_t columns, const Kernels& kernels) {
  return {take_rows(tensors, name, rows, columns, kernels), tensors.floats(name + ".scale", {rows, 3})};
}

FirstProjection take_first_projection(TensorTable& tensors, const Config& config, const Kernels& kernels) {
  const std::string name = "layers.0.word_qkv";
  const std::int64_t columns = 3 * config.context(), rows = tensors.length(name + ".row_sum");
  const std::int64_t most = round_up(config.vocabulary, kLanes);
  if (rows < 0 || rows > most) {
    throw ModelError(name + ": expected at most " + std::to_string(most) + " rows, got " + std::to_string(rows));
  }
  FirstProjection first = {};
  first.row = tensors.int32s(name + ".row", {most});
  for (std::int64_t id = 0; id < most; ++id) {
    if (first.row[id] < -1 || first.row[id] >= rows) {
      throw ModelError(name + ".row[" + std::to_string(id) + "]: expected -1 to " + std::to_string(rows - 1) +
                       ", got " + std::to_string(first.row[id]));
    }
  }
  first.words = take_projected_rows(tensors, name, rows, columns, kernels);
  first.positions =
      take_projected_rows(tensors, "layers.0.position_qkv", round_up(config.positions, kLanes), columns, kernels);
  first.bias = tensors.floats(name + ".bias", {columns});
  return first;
}

}  // namespace

void Config::check() const {
  check_size("layers", layers, 1, 1000);
  check_size("hidden", hidden, 1, 16384);
  check_size("heads", heads, 1, hidden);
  if (hidden % heads != 0) {
    throw ModelError("config: expected hidden to be a multiple of heads, got " + std::to_string(hidden) + " and " +
                     std::to_string(heads));
  }
  check_size("ffn", ffn, 1, 65536);
  check_size("vocabulary", vocabulary, 1, 10000000);
  check_size("positions", positions, 1, 65536);
  check_size("labels", labels, 1, 65536);
  if (levels != 127 && levels != 255) {
    throw ModelError("config: expected levels 127 or 255, got " + std::to_string(levels));
  }
  if (depth != 4 && depth != 8) throw ModelError("config: expected depth 4 or 8, got " + std::to_string(depth));
  if (!(std::isfinite(layer_norm_epsilon) && layer_norm_epsilon > 0.0f)) {
    std::ostringstream got;
    got << layer_norm_epsilon;
    throw ModelError("config: expected a positive layer_norm_epsilon, got " + got.str());
  }
}

int Config::score_levels() const {
  // The root of an integer is exact enough in double precision: it is at least 1e-5 away from the next integer, or one.
  const std::int64_t square = ((std::int64_t{1} << 30) - 1) / head();
  return std::min(32767, static_cast<int>(std::sqrt(static_cast<double>(square))));
}

Model::Model(const Config& sizes, TensorTable& tensors, const Kernels& kernels) : config(sizes) {
  config.check();
  const std::int64_t hidden = config.padded_hidden();
  word = take_rows(tensors, "embeddings.word", round_up(config.vocabulary, kLanes), hidden, kernels);
  word_scale = tensors.floats("embeddings.word.scale", {round_up(config.vocabulary, kLanes)});
  position = tensors.floats("embeddings.position", {config.positions, hidden});
  embedding_norm = take_norm(tensors, "embeddings.norm", hidden);
  first_projection = config.layers > 1 ? take_first_projection(tensors, config, kernels) : FirstProjection{};
  std::size_t index = 0;
  for (std::int64_t i = 0; i < config.layers; ++i) {
    const std::string name = "layers." + std::to_string(i) + ".";
    const auto take = [&](const char* part, std::int64_t inputs, std::int64_t outputs) {
      Linear linear = take_linear(tensors, name + part, inputs, outputs, config, kernels);
      linear.index = index++;
      return linear;
    };
    EncoderLayer layer = {};
    if (i + 1 < config.layers) {
      layer.qkv = take("qkv", hidden, 3 * config.context());
    } else {
      last_attention.query = take("query", hidden, config.context());
      last_attention.key = take("key", config.head(), config.heads * hidden);
      last_attention.value = take("value", hidden, config.context());
    }
    layer.out = take("out", config.context(), hidden);
    layer.ffn1 = take("ffn1", hidden, config.padded_ffn());
    layer.ffn2 = take("ffn2", config.padded_ffn(), hidden);
    layer.attention_norm = take_norm(tensors, name + "attention_norm", hidden);
    layer.output_norm = take_norm(tensors, name + "output_norm", hidden);
    if (kernels.window_norms != nullptr && config.depth == kMaxDepth && config.levels <= 127) {
      add_window_norms(layer.ffn2, kernels);
    }
    layers.push_back(std::move(layer));
  }
  hidden_k = std::max(last_attention.query.input.k, last_attention.value.input.k);
  ffn_k = 0;
  for (const EncoderLayer& layer : layers) {
    hidden_k = std::max({hidden_k, layer.qkv.input.k, layer.out.input.k, layer.ffn1.input.k});
    ffn_k = std::max(ffn_k, layer.ffn2.input.k);
  }
  pre_classifier = tensors.floats("pre_classifier.weight", {hidden / kLanes, config.hidden, kLanes});
  pre_classifier_bias = tensors.floats("pre_classifier.bias", {hidden});
  classifier = tensors.floats("classifier.weight", {config.padded_labels() / kLanes, config.hidden, kLanes});
  classifier_bias = tensors.floats("classifier.bias", {config.padded_labels()});
  tensors.expect_all_used();
}

std::vector<const Linear*> Model::linears() const {
  std::vector<const Linear*> all;
  for (const EncoderLayer& layer : layers) {
    if (&layer == &layers.back()) {
      all.insert(all.end(), {&last_attention.query, &last_attention.key, &last_attention.value});
    } else {
      all.push_back(&layer.qkv);
    }
    all.insert(all.end(), {&layer.out, &layer.ffn1, &layer.ffn2});
  }
  return all;
}

}  // namespace agnews_fast
