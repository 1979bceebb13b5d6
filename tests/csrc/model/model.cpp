#include "model/model.h"

#include <algorithm>
#include <cmath>

#include "check.h"
#include "model/error.h"
#include "model/random_model.h"

namespace agnews_fast {
namespace {

Config small() { return {1, 21, 7, 35, 33, 19, 3, Activation::kGelu, 1e-12f, 127, 8}; }

constexpr std::uint64_t kSeedOfWideFfn1 = 2;

// With a first projection, which takes two layers.
Config deeper() {
  Config config = small();
  config.layers = 2;
  return config;
}

// Loading, after `damage` has changed one part of a good model.
template <typename Damage>
void load_damaged(Damage damage, const Config& config = small(), std::uint64_t seed = 1) {
  RandomModel model(config, seed);
  damage(model);
  model.load();
}

TEST(sizes_are_padded_as_documented) {
  Config config = small();
  CHECK_EQ(config.padded_hidden(), 32);
  CHECK_EQ(config.padded_ffn(), 48);
  CHECK_EQ(config.padded_labels(), 16);
  CHECK_EQ(config.head(), 16);
  CHECK_EQ(config.context(), 112);
  config.hidden = 768;
  config.heads = 12;
  CHECK_EQ(config.padded_hidden(), 768);
  CHECK_EQ(config.head(), 64);
  CHECK_EQ(config.context(), 768);
}

TEST(sums_over_a_head_of_queries_and_keys_stay_below_half_of_32_bits_and_use_it) {
  Config config = test_configs().front();
  for (const std::int64_t head : {1, 16, 20, 32, 48, 64, 96, 128, 256, 1000, 4096, 16384}) {
    const check::Scope scope("head ", head);
    config.hidden = head;
    config.heads = 1;
    const std::int64_t levels = config.score_levels();
    CHECK(config.head() * levels * levels < std::int64_t{1} << 30);
    CHECK(config.head() * (levels + 1) * (levels + 1) >= std::int64_t{1} << 30);
    CHECK(levels <= 32767);
  }
  config.hidden = 64;
  CHECK_EQ(config.score_levels(), 4095);
}

TEST(every_size_has_limits) {
  const auto refused = [](auto change, const std::string& part) {
    Config config = small();
    config.check();
    change(config);
    CHECK_THROWS(config.check(), ModelError, part);
  };
  for (const std::int64_t bad : {std::int64_t{0}, std::int64_t{-1}, INT64_MIN, std::int64_t{1} << 40, INT64_MAX}) {
    refused([=](Config& c) { c.layers = bad; }, "expected layers from 1 to");
    refused([=](Config& c) { c.hidden = bad; }, "expected hidden from 1 to");
    refused([=](Config& c) { c.heads = bad; }, "expected heads from 1 to 21");
    refused([=](Config& c) { c.ffn = bad; }, "expected ffn from 1 to");
    refused([=](Config& c) { c.vocabulary = bad; }, "expected vocabulary from 1 to");
    refused([=](Config& c) { c.positions = bad; }, "expected positions from 1 to");
    refused([=](Config& c) { c.labels = bad; }, "expected labels from 1 to");
    refused([=](Config& c) { c.labels = bad; }, "got " + std::to_string(bad));
  }
  refused([](Config& c) { c.heads = 2; }, "expected hidden to be a multiple of heads, got 21 and 2");
  for (const int bad : {0, -1, 126, 128, 256}) {
    refused([=](Config& c) { c.levels = bad; }, "expected levels 127 or 255, got " + std::to_string(bad));
  }
  for (const int bad : {0, 1, 2, 5, 7, 16, -8}) {
    refused([=](Config& c) { c.depth = bad; }, "expected depth 4 or 8, got " + std::to_string(bad));
  }
  for (const auto& [bad, shown] : {std::pair{0.0f, "0"}, {-1e-12f, "-1e-12"}, {NAN, "nan"}, {INFINITY, "inf"}}) {
    refused([=](Config& c) { c.layer_norm_epsilon = bad; },
            std::string("expected a positive layer_norm_epsilon, got ") + shown);
  }
}

TEST(a_model_is_views_into_the_file) {
  for (const Config& config : test_configs()) {
    RandomModel random(config, 2);
    const Model model = random.load();
    CHECK_EQ(model.layers.size(), static_cast<std::size_t>(config.layers));
    CHECK_EQ(model.word, random.data<std::int8_t>("embeddings.word.weight"));
    CHECK_EQ(model.position, random.data<float>("embeddings.position"));
    if (config.layers > 1) {
      CHECK_EQ(model.first_projection.words.weight, random.data<std::int8_t>("layers.0.word_qkv.weight"));
      CHECK_EQ(model.first_projection.positions.scale, random.data<float>("layers.0.position_qkv.scale"));
    }
    CHECK_EQ(model.classifier, random.data<float>("classifier.weight"));
    std::size_t index = 0;
    for (const Linear* linear : model.linears()) {
      CHECK_EQ(linear->index, index++);
      CHECK_EQ(linear->input.k, linear->weights.k);
      CHECK_EQ(linear->input.k % kKBlock, 0);
      CHECK(linear->input.columns <= linear->input.k);
      CHECK_EQ(linear->input.wide, linear->weights.wide);
      CHECK(linear->input.k <=
            (linear->input.columns == config.padded_ffn() ? std::max(model.ffn_k, model.hidden_k) : model.hidden_k));
      CHECK_EQ(linear->input.levels, config.levels);
      CHECK_EQ(linear->weights.depth, config.depth);
    }
    CHECK_EQ(index, static_cast<std::size_t>(4 * config.layers + 2));
    CHECK_EQ(model.last_attention.query.weights.n, config.context());
    CHECK_EQ(model.last_attention.key.input.columns, config.head());
    CHECK_EQ(model.last_attention.key.weights.n, config.heads * config.padded_hidden());
    CHECK_EQ(model.last_attention.value.weights.n, config.context());
    for (const EncoderLayer& layer : model.layers) {
      if (&layer != &model.layers.back()) CHECK_EQ(layer.qkv.weights.n, 3 * config.context());
      CHECK_EQ(layer.out.input.columns, config.context());
      CHECK_EQ(layer.ffn1.weights.n, config.padded_ffn());
      CHECK_EQ(layer.ffn2.input.columns, config.padded_ffn());
    }
    const std::string last = "layers." + std::to_string(config.layers - 1) + ".ffn2.weight";
    CHECK_EQ(model.layers.back().ffn2.weights.data, random.data<std::int8_t>(last));
  }
}

TEST(every_tensor_is_needed_with_its_type_and_shape_and_all_its_bytes) {
  const RandomModel model(deeper(), 3);
  for (const auto& [name, info] : model.tensors) {
    const check::Scope scope("tensor ", name);
    const auto load_with = [&](auto change) {
      TensorTable table = [&] {
        std::map<std::string, TensorInfo> tensors = model.tensors;
        change(tensors);
        return TensorTable(model.bytes.data(), static_cast<std::size_t>(model.bytes.size()), std::move(tensors));
      }();
      const Model loaded(model.plain.config, table, select_kernels(""));
    };
    const std::string key = name;
    CHECK_THROWS(load_with([&](auto& tensors) { tensors.erase(key); }), ModelError, "tensor '" + key + "' is missing");
    CHECK_THROWS(load_with([&](auto& tensors) { tensors[key].dtype = "F16"; }), ModelError, "'" + key + "': expected");
    CHECK_THROWS(load_with([&](auto& tensors) { tensors[key].shape.push_back(1); }), ModelError,
                 "'" + key + "': expected");
    // A list may have any length, but then what describes it no longer fits; one past the end fits nothing.
    CHECK_THROWS(load_with([&](auto& tensors) { tensors[key].shape[0] += 1; }), ModelError, "expected");
    CHECK_THROWS(load_with([&](auto& tensors) { tensors[key].end += 4; }), ModelError, "'" + key + "': expected");
    CHECK_THROWS(load_with([&](auto& tensors) {
                   const std::uint64_t size = tensors[key].end - tensors[key].begin;
                   const auto file = static_cast<std::uint64_t>(model.bytes.size());
                   tensors[key].begin = file - size + 64;
                   tensors[key].end = file + 64;
                 }),
                 ModelError, "inside a file of " + std::to_string(model.bytes.size()));
  }
}

TEST(a_tensor_too_many_is_refused) {
  CHECK_THROWS(
      load_damaged([](RandomModel& m) { m.tensors["layers.1.query.weight"] = m.tensors["layers.0.query.weight"]; }),
      ModelError, "tensor 'layers.1.query.weight' is not part of this model");
}

TEST(floats_must_be_finite) {
  const RandomModel model(deeper(), 1);
  for (const auto& [name, info] : model.tensors) {
    if (info.dtype != "F32") continue;
    const std::string key = name;
    const auto elements = static_cast<std::int64_t>((info.end - info.begin) / sizeof(float));
    for (const std::int64_t i : {std::int64_t{0}, elements / 2, elements - 1}) {
      for (const float bad : {NAN, -NAN, INFINITY, -INFINITY}) {
        CHECK_THROWS(load_damaged([&](RandomModel& m) { m.data<float>(key)[i] = bad; }, deeper()), ModelError,
                     "tensor '" + key + "' holds a value that is not finite");
      }
    }
  }
}

TEST(floats_of_any_finite_size_pass) {
  for (const float good : {3.402823466e+38f, -3.402823466e+38f, 1e-45f, -0.0f}) {
    load_damaged([&](RandomModel& m) { m.data<float>("pre_classifier.weight")[3] = good; });
  }
}

TEST(divisors_are_above_0_and_at_most_1) {
  for (const char* linear : {"query", "key", "value", "out", "ffn1", "ffn2"}) {
    const std::string name = std::string("layers.0.") + linear + ".inverse_divisor";
    for (const float bad : {0.0f, -0.0f, -0.5f, 1.0000001f, 1e30f}) {
      CHECK_THROWS(load_damaged([&](RandomModel& m) { m.data<float>(name)[2] = bad; }), ModelError,
                   name + "[2]: expected a value in (0, 1]");
    }
    load_damaged([&](RandomModel& m) { m.data<float>(name)[2] = 1e-40f; });
  }
}

TEST(wide_channels_are_inputs) {
  const std::string name = "layers.0.ffn1.wide_channel";
  RandomModel good(small(), kSeedOfWideFfn1);
  std::int64_t wide = 0;
  while (good.data<std::int32_t>(name)[wide] >= 0) ++wide;
  CHECK(wide > 0);  // or the test would pass for nothing
  const auto load_with = [&](std::int64_t i, std::int32_t channel) {
    load_damaged([&](RandomModel& m) { m.data<std::int32_t>(name)[i] = channel; }, small(), kSeedOfWideFfn1);
  };
  for (const std::int32_t bad : {-2, 32, INT32_MIN, INT32_MAX}) {
    for (const std::int64_t i : {std::int64_t{0}, wide - 1}) {
      CHECK_THROWS(load_with(i, bad), ModelError,
                   name + "[" + std::to_string(i) + "]: expected 0 to 31, got " + std::to_string(bad));
    }
  }
  load_with(0, 31);
  CHECK_THROWS(load_with(0, -1), ModelError, name + "[1]: expected -1 behind the last channel, got");
  CHECK_THROWS(load_with(wide - 1, -1), ModelError,
               name + ": expected an even number of channels, got " + std::to_string(wide - 1));
  CHECK_THROWS(load_with(wide, 5), ModelError,
               name + ": expected an even number of channels, got " + std::to_string(wide + 1));
  CHECK_THROWS(load_with(kMostWide - 1, 5), ModelError, name + "[15]: expected -1 behind the last channel, got 5");
}

TEST(lists_of_absurd_length_are_refused) {
  for (const std::int64_t bad : {std::int64_t{-1}, std::int64_t{100000}, INT64_MAX, INT64_MIN}) {
    CHECK_THROWS(load_damaged([&](RandomModel& m) { m.tensors["layers.0.query.outlier_k"].shape[0] = bad; }),
                 ModelError, "layers.0.query: expected at most 3584 outliers, got " + std::to_string(bad));
  }
}

TEST(first_projections_are_checked) {
  const std::string words = "layers.0.word_qkv", positions = "layers.0.position_qkv";
  const auto change = [](auto damage) { load_damaged([&](RandomModel& m) { damage(m); }, deeper()); };
  const std::int64_t rows = RandomModel(deeper(), 1).tensors[words + ".row_sum"].shape[0];
  CHECK(rows > 0);
  for (const std::int64_t bad : {std::int64_t{-2}, rows, std::int64_t{INT32_MIN}, std::int64_t{INT32_MAX}}) {
    // The last is one that only pads the vocabulary.
    for (const std::int64_t id : {0, 32, 47}) {
      CHECK_THROWS(
          change([&](RandomModel& m) { m.data<std::int32_t>(words + ".row")[id] = static_cast<std::int32_t>(bad); }),
          ModelError,
          words + ".row[" + std::to_string(id) + "]: expected -1 to " + std::to_string(rows - 1) + ", got " +
              std::to_string(bad));
    }
  }
  change([&](RandomModel& m) { m.data<std::int32_t>(words + ".row")[0] = static_cast<std::int32_t>(rows) - 1; });
  change([&](RandomModel& m) { m.data<std::int32_t>(words + ".row")[0] = -1; });
  for (const std::string& name : {words, positions}) {
    CHECK_THROWS(change([&](RandomModel& m) { m.data<std::int8_t>(name + ".weight")[336 + 17] ^= 4; }), ModelError,
                 name + ".weight, row 1: the numbers add up to");
    CHECK_THROWS(change([&](RandomModel& m) { m.data<std::int32_t>(name + ".row_sum")[0] += 1; }), ModelError,
                 name + ".weight, row 0: the numbers add up to");
  }
  for (const std::int64_t bad : {std::int64_t{-1}, std::int64_t{49}, INT64_MAX, INT64_MIN}) {
    CHECK_THROWS(change([&](RandomModel& m) { m.tensors[words + ".row_sum"].shape[0] = bad; }), ModelError,
                 words + ": expected at most 48 rows, got " + std::to_string(bad));
  }
}

TEST(word_embeddings_are_checked) {
  const auto change = [](auto damage) { load_damaged([&](RandomModel& m) { damage(m); }); };
  // Of 21 columns, padded to 32.
  CHECK_THROWS(change([](RandomModel& m) { m.data<std::int8_t>("embeddings.word.weight")[2 * 32 + 3] ^= 1; }),
               ModelError, "embeddings.word.weight, row 2: the numbers add up to");
  CHECK_THROWS(change([](RandomModel& m) { m.data<std::int32_t>("embeddings.word.row_sum")[1] += 1; }), ModelError,
               "embeddings.word.weight, row 1: the numbers add up to");
}

TEST(weights_are_checked) {
  for (const char* linear : {"query", "key", "value", "out", "ffn1", "ffn2"}) {
    const std::string name = std::string("layers.0.") + linear;
    const auto change = [&](auto damage) { load_damaged([&](RandomModel& m) { damage(m); }); };
    CHECK_THROWS(change([&](RandomModel& m) { m.data<std::int8_t>(name + ".weight")[17] ^= 1; }), ModelError,
                 name + ".weight, output column 4: the weights add up to");
    CHECK_THROWS(change([&](RandomModel& m) { m.data<std::int32_t>(name + ".column_sum")[0] += 1; }), ModelError,
                 name + ".weight, output column 0");
    CHECK_THROWS(change([&](RandomModel& m) { m.data<std::int32_t>(name + ".outlier_begin")[0] = 1; }), ModelError,
                 name + ".weight: outlier_begin");
  }
  const auto enlarge = [](RandomModel& m) {
    for (int i = 0; i < 2; ++i) m.data<std::int16_t>("layers.0.ffn1.wide_weight")[2 * 9 + i] = 32767;
  };
  CHECK_THROWS(load_damaged(enlarge, small(), kSeedOfWideFfn1), ModelError,
               "layers.0.ffn1.weight, output column 9: the weights of wide channels would overflow 32 bits");
}

}  // namespace
}  // namespace agnews_fast
