#include "model/forward.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <thread>
#include <vector>

#include "check.h"
#include "kernels/each_isa.h"
#include "model/random_model.h"
#include "model/reference_forward.h"

namespace agnews_fast {
namespace {

// Longer than the blocks of queries (48) and of the feed-forward network (96), shorter, and at the edges of vectors.
const std::vector<std::int64_t> kLengths = {1, 3, 17, 2, 49, 16, 1, 5, 1, 2, 97, 110, 2, 3};

struct Answer {
  std::vector<float> logits, first_token;
};

Answer run(const Model& model, const Kernels& kernels, const Batch& batch, int members = 1,
           Workspace* reused = nullptr) {
  Workspace fresh;
  Workspace& workspace = reused != nullptr ? *reused : fresh;
  workspace.grow(model, batch, members);
  Answer answer = {std::vector<float>(static_cast<std::size_t>(batch.texts * model.config.labels), NAN),
                   std::vector<float>(static_cast<std::size_t>(batch.texts * model.config.hidden), NAN)};
  Barrier barrier(members);
  const auto work = [&](int rank) {
    Forward(model, kernels, workspace)
        .run(batch, Member{rank, members, members > 1 ? &barrier : nullptr}, answer.logits.data(),
             answer.first_token.data());
  };
  std::vector<std::thread> threads;
  for (int rank = 1; rank < members; ++rank) threads.emplace_back(work, rank);
  work(0);
  for (std::thread& thread : threads) thread.join();
  return answer;
}

// `part` is the answer to the texts from `first` on of the batch that `all` answers.
void check_part(const Config& config, const Answer& part, const Answer& all, std::int64_t first) {
  CHECK_SAME_BITS(part.logits.data(), all.logits.data() + first * config.labels,
                  static_cast<std::int64_t>(part.logits.size()));
  CHECK_SAME_BITS(part.first_token.data(), all.first_token.data() + first * config.hidden,
                  static_cast<std::int64_t>(part.first_token.size()));
}

void for_each_model(const Kernels& kernels,
                    const std::function<void(const RandomModel&, const Model&, const Batch&)>& visit) {
  std::uint64_t seed = 30;
  for (const Config& config : test_configs()) {
    ++seed;
    // Words that are looked up and words that are computed; in the shallower one, either alone too.
    for (const double projected : {0.6, 0.0, 1.0}) {
      if (projected != 0.6 && config.layers != 2) continue;
      const check::Scope scope("hidden ", config.hidden, ", heads ", config.heads, ", levels ", config.levels,
                               ", depth ", config.depth, ", projected ", projected);
      RandomModel random(config, seed, projected);
      random.forbid_gaps();
      const Model model = random.load(kernels);
      const Texts texts(config, kLengths, seed);
      visit(random, model, {texts.ids.data(), texts.offsets.data(), static_cast<std::int64_t>(kLengths.size())});
    }
  }
}

double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  double most = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) most = std::max(most, std::fabs(a[i] - b[i]));
  return most;
}

std::vector<double> slice(const std::vector<float>& all, std::int64_t text, std::int64_t width) {
  return {all.begin() + text * width, all.begin() + (text + 1) * width};
}

// What float may differ from double by, in values near 1: some hundred roundings of 6e-8, seldom all one way.
constexpr double kRounding = 5e-5;

// Of the core from the reference, which quantises as the core does. That small a difference can grow: where a value lies
// so near to the middle of two levels that they round it apart, and from there on they differ as quantisation itself
// does. Its size is `noise`: what the reference differs by from itself without quantisation. It happens to few texts, the
// longest: of their queries, keys and values some are always apart by one of 4095 levels, which shows little by itself,
// but makes it that much likelier that one of 127 levels follows.
void check_differences(const std::vector<double>& differences, double noise) {
  std::size_t grown = 0;
  for (std::size_t i = 0; i < differences.size(); ++i) {
    const check::Scope scope("difference ", i, " of ", differences.size());
    CHECK_NEAR(differences[i], 0.0, noise + kRounding);
    grown += differences[i] > kRounding ? 1 : 0;
  }
  CHECK(grown * 4 <= differences.size());
}

TEST_EACH_ISA(a_forward_pass_computes_the_network) {
  for_each_model(kernels, [&](const RandomModel& random, const Model& model, const Batch& batch) {
    const Config& config = model.config;
    const Answer got = run(model, kernels, batch);
    double noise = 0.0;
    std::vector<double> differences;
    for (std::int64_t text = 0; text < batch.texts; ++text) {
      const std::int32_t* ids = batch.ids + batch.offsets[text];
      const Reference quantized = reference_forward(random.plain, ids, batch.length(text), true);
      const Reference exact = reference_forward(random.plain, ids, batch.length(text), false);
      noise = std::max({noise, largest_difference(quantized.logits, exact.logits),
                        largest_difference(quantized.first_token, exact.first_token)});
      differences.push_back(
          std::max(largest_difference(slice(got.logits, text, config.labels), quantized.logits),
                   largest_difference(slice(got.first_token, text, config.hidden), quantized.first_token)));
    }
    check_differences(differences, noise);
  });
}

TEST_EACH_ISA(a_text_has_the_same_bits_on_every_instruction_set_alone_and_in_any_batch) {
  for_each_model(kernels, [&](const RandomModel&, const Model& model, const Batch& batch) {
    const Answer specified = run(model, scalar_kernels(), batch);
    check_part(model.config, run(model, kernels, batch), specified, 0);
    Workspace reused;  // keeps what earlier, longer texts have left
    for (std::int64_t text = batch.texts - 1; text >= 0; --text) {
      const check::Scope scope("text ", text);
      const Batch alone = batch.slice(text, text + 1);
      check_part(model.config, run(model, kernels, alone, 1, &reused), specified, text);
    }
    for (const auto& [begin, end] : {std::pair{1, 4}, {3, 9}, {5, 14}}) {
      const check::Scope scope("texts ", begin, " to ", end);
      check_part(model.config, run(model, kernels, batch.slice(begin, end), 1, &reused), specified, begin);
    }
  });
}

TEST_EACH_ISA(a_team_of_any_size_computes_the_same_bits) {
  for_each_model(kernels, [&](const RandomModel&, const Model& model, const Batch& batch) {
    const Answer alone = run(model, kernels, batch);
    Workspace reused;
    for (const int members : {2, 3, 4}) {
      const check::Scope scope("members ", members);
      check_part(model.config, run(model, kernels, batch, members), alone, 0);
      // One text, short and long: less than a row tile a member, and more.
      for (const std::int64_t text : {0, 7, 10}) {
        const check::Scope one("text ", text);
        check_part(model.config, run(model, kernels, batch.slice(text, text + 1), members, &reused), alone, text);
      }
    }
  });
}

// The model's numbers are finite, as its file must have them, but what they lead to is not.
void check_overflow(const Kernels& kernels, const std::function<void(RandomModel&)>& damage,
                    const std::function<bool(std::int64_t)>& concerns) {
  for (const Config& config : test_configs()) {
    if (config.hidden == 1) continue;  // LayerNorm of one number is beta
    const check::Scope scope("hidden ", config.hidden);
    RandomModel random(config, 50);
    const Texts texts(config, kLengths, 51);
    const Batch batch = {texts.ids.data(), texts.offsets.data(), static_cast<std::int64_t>(kLengths.size())};
    const Answer before = run(random.load(kernels), kernels, batch);
    damage(random);
    const Model model = random.load(kernels);
    for (const int members : {1, 2}) {
      const Answer after = run(model, kernels, batch, members);
      for (std::int64_t text = 0; text < batch.texts; ++text) {
        const check::Scope one("text ", text);
        const std::int32_t* ids = batch.ids + batch.offsets[text];
        if (std::any_of(ids, ids + batch.length(text), concerns)) {
          const float* logits = after.logits.data() + text * config.labels;
          CHECK(!std::all_of(logits, logits + config.labels, [](float x) { return std::isfinite(x); }));
        } else {
          CHECK_SAME_BITS(after.logits.data() + text * config.labels, before.logits.data() + text * config.labels,
                          config.labels);
          CHECK_SAME_BITS(after.first_token.data() + text * config.hidden,
                          before.first_token.data() + text * config.hidden, config.hidden);
        }
      }
    }
  }
}

TEST_EACH_ISA(a_word_that_overflows_shows_in_the_logits_of_its_texts_alone) {
  for (const std::int64_t id : {0, 1, 2}) {
    const check::Scope scope("word ", id);
    check_overflow(
        kernels, [&](RandomModel& m) { m.data<float>("embeddings.word.scale")[id] = 3e37f; },
        [&](std::int64_t word) { return word == id; });
  }
}

TEST_EACH_ISA(a_matrix_that_overflows_shows_in_the_logits) {
  for (const char* name : {"query.scale", "key.scale", "value.scale", "out.scale", "ffn1.scale", "ffn2.scale",
                           "attention_norm.gamma", "output_norm.gamma"}) {
    const check::Scope scope(name);
    check_overflow(
        kernels,
        [&](RandomModel& m) {
          const std::string tensor = "layers." + std::to_string(m.plain.config.layers - 1) + "." + name;
          const TensorInfo& info = m.tensors.at(tensor);
          std::fill_n(m.data<float>(tensor), (info.end - info.begin) / sizeof(float), 3e38f);
        },
        [](std::int64_t) { return true; });
  }
}

TEST(maxima_do_not_change_the_answer_and_hold_what_the_linears_see) {
  const Kernels& kernels = select_kernels("");
  for_each_model(kernels, [&](const RandomModel& random, const Model& model, const Batch& batch) {
    const Config& config = model.config;
    ChannelMaxima maxima;
    const std::vector<const Linear*> linears = model.linears();
    for (const Linear* linear : linears) {
      maxima.emplace_back(static_cast<std::size_t>(linear->input.columns), 0.0f);
    }
    const auto is_out = [&](const Linear* linear) {
      return std::any_of(model.layers.begin(), model.layers.end(),
                         [&](const EncoderLayer& layer) { return linear == &layer.out; });
    };
    Workspace workspace;
    workspace.grow(model, batch, 1);
    Answer answer = run(model, kernels, batch);
    const Answer before = answer;
    Forward(model, kernels, workspace, {.maxima = &maxima})
        .run(batch, Member{}, answer.logits.data(), answer.first_token.data());
    check_part(config, answer, before, 0);

    std::vector<std::vector<double>> expected(maxima.size());
    double noise = 0.0;
    for (std::int64_t text = 0; text < batch.texts; ++text) {
      const std::int32_t* ids = batch.ids + batch.offsets[text];
      const Reference quantized = reference_forward(random.plain, ids, batch.length(text), true);
      const Reference exact = reference_forward(random.plain, ids, batch.length(text), false);
      for (std::size_t i = 0; i < expected.size(); ++i) {
        expected[i].resize(quantized.maxima[i].size(), 0.0);
        for (std::size_t c = 0; c < expected[i].size(); ++c) {
          expected[i][c] = std::max(expected[i][c], quantized.maxima[i][c]);
        }
        noise = std::max(noise, largest_difference(quantized.maxima[i], exact.maxima[i]));
      }
    }
    const auto head_size = static_cast<std::size_t>(config.hidden / config.heads);
    std::vector<double> differences;
    for (std::size_t i = 0; i < maxima.size(); ++i) {
      std::vector<double> padded(maxima[i].size(), 0.0);
      for (std::size_t c = 0; c < expected[i].size(); ++c) {
        const bool by_head = is_out(linears[i]);
        padded[by_head ? c / head_size * static_cast<std::size_t>(config.head()) + c % head_size : c] = expected[i][c];
      }
      for (std::size_t c = 0; c < padded.size(); ++c) differences.push_back(std::fabs(maxima[i][c] - padded[c]));
    }
    check_differences(differences, noise);
  });
}

}  // namespace
}  // namespace agnews_fast
