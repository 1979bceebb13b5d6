#include "model/random_model.h"

#include <cstdlib>
#include <cstring>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace agnews_fast {
namespace {

struct Raw {
  std::string name;
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::vector<std::byte> bytes;
};

template <typename T>
constexpr const char* kDtype = nullptr;
template <>
constexpr const char* kDtype<float> = "F32";
template <>
constexpr const char* kDtype<std::int32_t> = "I32";
template <>
constexpr const char* kDtype<std::int16_t> = "I16";
template <>
constexpr const char* kDtype<std::int8_t> = "I8";

class Builder {
 public:
  Builder(PlainModel& plain, std::uint64_t seed, double projected)
      : plain_(plain), config_(plain.config), random_(seed), projected_(projected) {}

  std::vector<Raw> build() {
    const std::int64_t hidden = config_.hidden, padded_hidden = config_.padded_hidden();
    std::vector<std::int8_t> word(size(round_up(config_.vocabulary, kLanes) * padded_hidden));
    std::vector<float> word_scale(size(round_up(config_.vocabulary, kLanes)), 1.0f);
    std::vector<std::int32_t> row_sum(word_scale.size());
    for (std::int64_t id = 0; id < config_.vocabulary; ++id) {
      word_scale[size(id)] = number(0.0005, 0.001);
      for (std::int64_t c = 0; c < hidden; ++c) {
        word[size(id * padded_hidden + c)] = static_cast<std::int8_t>(random_.integer(-127, 127));
        row_sum[size(id)] += word[size(id * padded_hidden + c)];
        plain_.word.push_back(static_cast<double>(word[size(id * padded_hidden + c)]) * word_scale[size(id)]);
      }
    }
    add("embeddings.word.weight", {round_up(config_.vocabulary, kLanes), padded_hidden}, word);
    add("embeddings.word.scale", {round_up(config_.vocabulary, kLanes)}, word_scale);
    add("embeddings.word.row_sum", {round_up(config_.vocabulary, kLanes)}, row_sum);
    std::vector<float> position(size(config_.positions * padded_hidden));
    for (std::int64_t row = 0; row < config_.positions; ++row) {
      for (std::int64_t c = 0; c < hidden; ++c) {
        plain_.position.push_back(position[size(row * padded_hidden + c)] = number(-0.04, 0.04));
      }
    }
    add("embeddings.position", {config_.positions, padded_hidden}, position);
    plain_.embedding_norm = add_norm("embeddings.norm");
    for (std::int64_t i = 0; i < config_.layers; ++i) {
      add_layer("layers." + std::to_string(i) + ".", i + 1 == config_.layers);
    }
    plain_.pre_classifier = add_head("pre_classifier", hidden, padded_hidden, plain_.pre_classifier_bias);
    plain_.classifier = add_head("classifier", config_.labels, config_.padded_labels(), plain_.classifier_bias);
    if (config_.layers > 1) add_first_projection();
    return std::move(raws_);
  }

 private:
  static std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }
  float number(double low, double high) { return static_cast<float>(random_.uniform(low, high)); }

  template <typename T>
  void add(const std::string& name, std::vector<std::int64_t> shape, const std::vector<T>& values) {
    std::vector<std::byte> bytes(values.size() * sizeof(T));
    if (!bytes.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
    raws_.push_back({name, kDtype<T>, std::move(shape), std::move(bytes)});
  }

  PlainNorm add_norm(const std::string& name) {
    PlainNorm norm;
    std::vector<float> gamma(size(config_.padded_hidden())), beta(size(config_.padded_hidden()));
    for (std::int64_t c = 0; c < config_.hidden; ++c) {
      norm.gamma.push_back(gamma[size(c)] = number(0.8, 1.2) * (c % 64 == 5 ? 4.0f : 1.0f));
      norm.beta.push_back(beta[size(c)] = number(-0.2, 0.2));
    }
    add(name + ".gamma", {config_.padded_hidden()}, gamma);
    add(name + ".beta", {config_.padded_hidden()}, beta);
    return norm;
  }

  std::vector<double> add_head(const std::string& name, std::int64_t outputs, std::int64_t padded_outputs,
                               std::vector<double>& plain_bias) {
    const std::int64_t inputs = config_.hidden;
    std::vector<float> weight(size(padded_outputs * inputs)), bias(size(padded_outputs));
    std::vector<double> plain(size(outputs * inputs));
    const double bound = 2.0 / std::sqrt(static_cast<double>(inputs));
    for (std::int64_t o = 0; o < outputs; ++o) {
      plain_bias.push_back(bias[size(o)] = number(-0.2, 0.2));
      for (std::int64_t i = 0; i < inputs; ++i) {
        const std::int64_t at = (o / kLanes * inputs + i) * kLanes + o % kLanes;
        plain[size(o * inputs + i)] = weight[size(at)] = number(-bound, bound);
      }
    }
    add(name + ".weight", {padded_outputs / kLanes, inputs, kLanes}, weight);
    add(name + ".bias", {padded_outputs}, bias);
    return plain;
  }

  void add_layer(const std::string& name, bool last) {
    const std::int64_t hidden = config_.hidden, head_size = hidden / config_.heads,
                       padded_hidden = config_.padded_hidden();
    const auto same = [](std::int64_t i) { return i; };
    const auto in_heads = [&](std::int64_t i) { return i / head_size * config_.head() + i % head_size; };
    const auto in_hidden = [&](std::int64_t i) { return i / hidden * padded_hidden + i % hidden; };
    const auto in_qkv = [&](std::int64_t o) { return projected_column(o); };
    const auto one = [](std::int64_t) { return 1.0; };
    const auto query = [&](std::int64_t o) { return query_factor(o); };
    PlainLayer layer;
    if (last) {
      layer.query = add_linear(name + "query", hidden, padded_hidden, same, hidden, config_.context(), in_heads, query);
      layer.key = add_linear(name + "key", head_size, config_.head(), same, config_.heads * hidden,
                             config_.heads * padded_hidden, in_hidden, one);
      layer.value = add_linear(name + "value", hidden, padded_hidden, same, hidden, config_.context(), in_heads, one);
    } else {
      layer.qkv =
          add_linear(name + "qkv", hidden, padded_hidden, same, 3 * hidden, 3 * config_.context(), in_qkv, query);
    }
    layer.out = add_linear(name + "out", hidden, config_.context(), in_heads, hidden, padded_hidden, same, one);
    layer.ffn1 = add_linear(name + "ffn1", hidden, padded_hidden, same, config_.ffn, config_.padded_ffn(), same, one);
    layer.ffn2 = add_linear(name + "ffn2", config_.ffn, config_.padded_ffn(), same, hidden, padded_hidden, same, one);
    layer.attention_norm = add_norm(name + "attention_norm");
    layer.output_norm = add_norm(name + "output_norm");
    plain_.layers.push_back(std::move(layer));
  }

  // q, k and v of the first layer for some words and all positions: by the definition, then rounded to int8.
  void add_first_projection() {
    const PlainLinear& qkv = plain_.layers.front().qkv;
    const PlainNorm& norm = plain_.embedding_norm;
    PlainProjection& plain = plain_.first_projection;
    std::vector<double> centred = qkv.weight;  // (3 x hidden, hidden)
    for (std::int64_t o = 0; o < qkv.outputs; ++o) {
      double* row = centred.data() + o * config_.hidden;
      double bias = qkv.bias[size(o)], mean = 0.0;
      for (std::int64_t i = 0; i < config_.hidden; ++i) {
        bias += row[i] * norm.beta[size(i)];
        row[i] *= norm.gamma[size(i)];
        mean += row[i] / static_cast<double>(config_.hidden);
      }
      for (std::int64_t i = 0; i < config_.hidden; ++i) row[i] -= mean;
      plain.bias.push_back(bias);
    }
    std::vector<float> bias(size(3 * config_.context()));
    for (std::int64_t o = 0; o < qkv.outputs; ++o) {
      bias[size(projected_column(o))] = static_cast<float>(plain.bias[size(o)] * query_factor(o));
    }
    add("layers.0.word_qkv.bias", {3 * config_.context()}, bias);

    std::vector<std::int32_t> row(size(round_up(config_.vocabulary, kLanes)), -1);
    std::vector<std::vector<double>> words;
    for (std::int64_t id = 0; id < config_.vocabulary; ++id) {
      if (random_.uniform(0.0, 1.0) >= projected_) continue;
      row[size(id)] = static_cast<std::int32_t>(words.size());
      words.push_back(multiplied(centred, plain_.word, id));
    }
    add("layers.0.word_qkv.row", {static_cast<std::int64_t>(row.size())}, row);
    add_rows("layers.0.word_qkv", words, static_cast<std::int64_t>(words.size()));
    plain.words.resize(size(config_.vocabulary));
    for (std::int64_t id = 0; id < config_.vocabulary; ++id) {
      if (row[size(id)] >= 0) plain.words[size(id)] = words[size(row[size(id)])];
    }
    for (std::int64_t p = 0; p < config_.positions; ++p) {
      plain.positions.push_back(multiplied(centred, plain_.position, p));
    }
    add_rows("layers.0.position_qkv", plain.positions, round_up(config_.positions, kLanes));
  }

  // Where an output of the plain qkv lies among the padded ones, and what it is multiplied by in the file.
  std::int64_t projected_column(std::int64_t o) const {
    const std::int64_t head_size = config_.hidden / config_.heads, in_part = o % config_.hidden;
    return o / config_.hidden * config_.context() + in_part / head_size * config_.head() + in_part % head_size;
  }
  double query_factor(std::int64_t o) const {
    return o < config_.hidden ? 1.0 / std::sqrt(static_cast<double>(config_.hidden / config_.heads)) : 1.0;
  }

  // matrix (outputs, hidden) times one row of rows (n, hidden).
  std::vector<double> multiplied(const std::vector<double>& matrix, const std::vector<double>& rows,
                                 std::int64_t row) const {
    std::vector<double> product(matrix.size() / size(config_.hidden));
    for (std::size_t o = 0; o < product.size(); ++o) {
      for (std::size_t i = 0; i < size(config_.hidden); ++i) {
        product[o] += matrix[o * size(config_.hidden) + i] * rows[size(row * config_.hidden) + i];
      }
    }
    return product;
  }

  // Rounds rows of (3 x hidden) to int8, with one scale each for q, k and v, and adds them, padded to so many rows.
  void add_rows(const std::string& name, std::vector<std::vector<double>>& rows, std::int64_t padded_rows) {
    const std::int64_t columns = 3 * config_.context();
    std::vector<std::int8_t> weight(size(padded_rows * columns));
    std::vector<float> scale(size(padded_rows * 3), 1.0f);
    std::vector<std::int32_t> row_sum(size(padded_rows));
    for (std::size_t row = 0; row < rows.size(); ++row) {
      for (std::int64_t part = 0; part < 3; ++part) {
        double largest = 1e-30;
        for (std::int64_t o = part * config_.hidden; o < (part + 1) * config_.hidden; ++o) {
          largest = std::max(largest, std::fabs(rows[row][size(o)] * query_factor(o)));
        }
        const float step = scale[3 * row + size(part)] = static_cast<float>(largest / 127.0);
        for (std::int64_t o = part * config_.hidden; o < (part + 1) * config_.hidden; ++o) {
          const double level = std::nearbyint(rows[row][size(o)] * query_factor(o) / step);
          weight[row * size(columns) + size(projected_column(o))] = static_cast<std::int8_t>(level);
          row_sum[row] += static_cast<std::int32_t>(level);
          rows[row][size(o)] = level * step / query_factor(o);
        }
      }
    }
    add(name + ".weight", {padded_rows, columns}, weight);
    add(name + ".scale", {padded_rows, 3}, scale);
    add(name + ".row_sum", {padded_rows}, row_sum);
  }

  // slot_of, column_of: where an input or output of the plain matrix lies among the padded ones; factor: what an output
  // is multiplied by in the file.
  template <typename SlotOf, typename ColumnOf, typename Factor>
  PlainLinear add_linear(const std::string& name, std::int64_t inputs, std::int64_t padded_inputs, SlotOf slot_of,
                         std::int64_t outputs, std::int64_t padded_outputs, ColumnOf column_of, Factor factor) {
    PlainLinear plain = {
        inputs, outputs, {}, {}, std::vector<double>(size(inputs), 1.0), std::vector<bool>(size(inputs), false)};
    std::vector<float> inverse_divisor(size(padded_inputs), 1.0f);
    std::vector<std::int64_t> wide;  // inputs
    const std::int64_t wanted = 2 * std::min(random_.integer(0, 2), inputs / 2);
    while (static_cast<std::int64_t>(wide.size()) < wanted) {
      const std::int64_t i = random_.integer(0, inputs - 1);
      if (plain.wide[size(i)]) continue;
      wide.push_back(i);
      plain.wide[size(i)] = true;
      plain.inverse_divisor[size(i)] = inverse_divisor[size(slot_of(i))] = 1.0f / (kWideSteps * number(1.0, 4.0));
    }
    std::vector<std::int32_t> wide_channel(size(kMostWide), -1);
    std::transform(wide.begin(), wide.end(), wide_channel.begin(), slot_of);
    const auto pairs = static_cast<std::int64_t>(wide.size() / 2);
    std::vector<std::int16_t> wide_weight(size(padded_outputs * 2 * pairs));
    const std::int64_t k = round_up(padded_inputs, kKBlock);

    std::vector<std::int32_t> integers(size(padded_outputs * k));  // (padded outputs, k), before the bound
    std::vector<float> scale(size(padded_outputs), 1.0f), bias(size(padded_outputs));
    for (std::int64_t o = 0; o < outputs; ++o) {
      const std::int64_t column = column_of(o);
      // Integers of standard deviation 24 for outputs of standard deviation near 1.
      const double typical = 1.0 / (24.0 * std::sqrt(static_cast<double>(inputs)));
      scale[size(column)] = static_cast<float>(typical * random_.uniform(0.7, 1.3) * factor(o));
      bias[size(column)] = static_cast<float>(random_.uniform(-0.2, 0.2) * factor(o));
      plain.bias.push_back(bias[size(column)] / factor(o));
      for (std::int64_t i = 0; i < inputs; ++i) {
        auto w = static_cast<std::int32_t>(std::lround(24.0 * random_.normal()));
        if (random_.integer(0, 999) == 0) w *= 20;
        plain.weight.push_back(w * static_cast<double>(scale[size(column)]) / factor(o));
        const std::int64_t place = std::find(wide.begin(), wide.end(), i) - wide.begin();
        if (place == 2 * pairs) {
          integers[size(column * k + slot_of(i))] = w;
        } else {
          plain.weight.back() *= kWideSteps * plain.inverse_divisor[size(i)];
          const std::int64_t pair = column / kPanel * pairs + place / 2;
          wide_weight[size((pair * kPanel + column % kPanel) * 2 + place % 2)] = static_cast<std::int16_t>(w);
        }
      }
    }
    add_packed(name, integers, padded_outputs, k);
    add(name + ".inverse_divisor", {padded_inputs}, inverse_divisor);
    add(name + ".wide_channel", {kMostWide}, wide_channel);
    add(name + ".wide_weight", {padded_outputs / kPanel, pairs, kPanel, 2}, wide_weight);
    add(name + ".scale", {padded_outputs}, scale);
    add(name + ".bias", {padded_outputs}, bias);
    return plain;
  }

  // Takes out of each window of 2 * depth weights what exceeds 8 or 16 bits; see kernels.h and model/overflow.h.
  void add_packed(const std::string& name, const std::vector<std::int32_t>& integers, std::int64_t n, std::int64_t k) {
    const std::int64_t panels = n / kPanel, block = kGroup * config_.depth;
    std::vector<std::int8_t> weight(size(n * k));
    std::vector<std::int32_t> column_sum(size(n)), begin(size(round_up(panels + 1, kLanes)));
    std::vector<std::int32_t> outlier_k, outlier_column, outlier_value;
    for (std::int64_t column = 0; column < n; ++column) {
      std::int32_t positive[2] = {}, negative[2] = {};
      for (std::int64_t i = 0; i < k; ++i) {
        const std::int64_t pair = i % kGroup / 2;
        if (i % block == 0) {
          for (int p = 0; p < 2; ++p) positive[p] = negative[p] = 32767 / config_.levels;
        }
        const std::int32_t whole = integers[size(column * k + i)];
        const std::int32_t fits = std::clamp(whole, -std::min(127, negative[pair]), std::min(127, positive[pair]));
        (fits > 0 ? positive : negative)[pair] -= std::abs(fits);
        const std::int64_t group = column / kPanel * (k / kGroup) + i / kGroup;
        weight[size((group * kPanel + column % kPanel) * kGroup + i % kGroup)] = static_cast<std::int8_t>(fits);
        column_sum[size(column)] += whole;
        if (fits != whole) {
          outlier_k.push_back(static_cast<std::int32_t>(i));
          outlier_column.push_back(static_cast<std::int32_t>(column % kPanel));
          outlier_value.push_back(whole - fits);
        }
      }
      begin[size(column / kPanel + 1)] = static_cast<std::int32_t>(outlier_k.size());
    }
    const auto outliers = static_cast<std::int64_t>(outlier_k.size());
    add(name + ".weight", {panels, k / kGroup, kPanel, kGroup}, weight);
    add(name + ".column_sum", {n}, column_sum);
    add(name + ".outlier_begin", {static_cast<std::int64_t>(begin.size())}, begin);
    add(name + ".outlier_k", {outliers}, outlier_k);
    add(name + ".outlier_column", {outliers}, outlier_column);
    add(name + ".outlier_value", {outliers}, outlier_value);
  }

  PlainModel& plain_;
  const Config config_;
  Random random_;
  const double projected_;
  std::vector<Raw> raws_;
};

}  // namespace

RandomModel::RandomModel(const Config& config, std::uint64_t seed, double projected) {
  plain.config = config;
  const std::vector<Raw> raws = Builder(plain, seed, projected).build();
  std::int64_t end = 0;
  for (const Raw& raw : raws) {
    // At least 64 bytes between two tensors, see forbid_gaps; none behind the last.
    const std::int64_t begin = round_up(end + 64, 64);
    end = begin + static_cast<std::int64_t>(raw.bytes.size());
    tensors[raw.name] = {raw.dtype, raw.shape, static_cast<std::uint64_t>(begin), static_cast<std::uint64_t>(end)};
  }
  bytes = Array<std::byte>(end);
  for (const Raw& raw : raws) std::copy(raw.bytes.begin(), raw.bytes.end(), bytes.data() + tensors[raw.name].begin);
}

void RandomModel::forbid_gaps() {
#if defined(__SANITIZE_ADDRESS__)
  ASAN_POISON_MEMORY_REGION(bytes.data(), static_cast<std::size_t>(bytes.size()));
  for (const auto& [name, tensor] : tensors) {
    ASAN_UNPOISON_MEMORY_REGION(bytes.data() + tensor.begin, tensor.end - tensor.begin);
  }
#endif
}

std::vector<Config> test_configs() {
  // layers, hidden, heads, ffn, vocabulary, positions, labels, activation, epsilon, levels, depth
  return {
      {2, 128, 2, 192, 100, 110, 7, Activation::kGelu, 1e-12f, 127, 8},
      {3, 120, 3, 200, 101, 64, 17, Activation::kRelu, 1e-5f, 255, 4},
      {1, 21, 7, 35, 33, 19, 1, Activation::kGelu, 1e-12f, 255, 8},
      {1, 1, 1, 1, 1, 1, 1, Activation::kRelu, 1e-12f, 127, 4},
  };
}

Texts::Texts(const Config& config, const std::vector<std::int64_t>& lengths, std::uint64_t seed) : offsets{0} {
  Random random(seed);
  for (const std::int64_t wanted : lengths) {
    const std::int64_t length = std::min(wanted, config.positions);
    for (std::int64_t i = 0; i < length; ++i) {
      ids.push_back(static_cast<std::int32_t>(random.integer(0, config.vocabulary - 1)));
    }
    offsets.push_back(static_cast<std::int64_t>(ids.size()));
  }
}

}  // namespace agnews_fast
