// Speed of each kernel on each instruction set, in work per cycle. Cycles are calibrated in the same run, by a chain of
// dependent additions (one a cycle on every x86-64 and Arm core), and time is this thread's CPU time, so that other load
// on the machine disturbs little. Kernels are interleaved and the median of the rounds is reported.
//
//   bench_kernels [--rounds N] [--isa NAME]
#include <time.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/registry.h"
#include "runtime/aligned_buffer.h"

namespace {

using agnews_fast::Activation;
using agnews_fast::AlignedBuffer;
using agnews_fast::Kernels;
using agnews_fast::kGroup;
using agnews_fast::kLanes;
using agnews_fast::kPanel;
using agnews_fast::kRowTile;
using agnews_fast::Operand16;
using agnews_fast::PackedRows;
using agnews_fast::PackedWeights;
using agnews_fast::Quantization;

double cpu_seconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

double cycles_per_second() {
  constexpr std::uint64_t kAdditions = 20'000'000;
  const double start = cpu_seconds();
  std::uint64_t sum = 1;
  for (std::uint64_t i = 0; i < kAdditions; i += 10) {
    // Ten dependent additions; the loop's own instructions run beside them.
#if defined(__x86_64__)
    asm volatile(
        "add %0, %0\n\tadd %0, %0\n\tadd %0, %0\n\tadd %0, %0\n\tadd %0, %0\n\t"
        "add %0, %0\n\tadd %0, %0\n\tadd %0, %0\n\tadd %0, %0\n\tadd %0, %0"
        : "+r"(sum));
#else
    for (int j = 0; j < 10; ++j) asm volatile("add %0, %0, %0" : "+r"(sum));
#endif
  }
  return static_cast<double>(kAdditions) / (cpu_seconds() - start);
}

struct Case {
  std::string isa, kernel, shape, unit;
  double work;  // units of work a call
  std::function<void()> call;
  std::vector<double> per_cycle = {};
};

template <typename T>
std::shared_ptr<AlignedBuffer<T>> buffer(std::int64_t size, const std::function<T()>& value) {
  auto data = std::make_shared<AlignedBuffer<T>>();
  data->grow(static_cast<std::size_t>(size));
  for (std::int64_t i = 0; i < size; ++i) data->data()[i] = value();
  return data;
}

constexpr std::int64_t kWide = 4;  // wide channels of a matrix of the packaged model

constexpr std::int64_t kColdCopies = 40;  // of 2.4 MB: more than most last-level caches

std::mt19937 random_bits(1);

float uniform() { return std::uniform_real_distribution<float>(-1.0f, 1.0f)(random_bits); }

// Outlier density as in the packaged model: 0.007 % of the weights. Long windows where it has them: in ffn2. Each call
// takes the next of so many copies of the weights: with many they come from memory, as in a forward pass of one text.
Case gemm_case(const Kernels& kernels, std::int64_t rows, std::int64_t k, std::int64_t n, int depth,
               Activation activation, std::int64_t copies = 1) {
  const auto outliers_before = [&](std::int64_t panel) { return panel * kPanel * k * 7 / 100000; };
  auto activations = buffer<std::uint8_t>(rows * k, [] { return static_cast<std::uint8_t>(random_bits() % 128); });
  auto weights = buffer<std::int8_t>(copies * n * k, [] { return static_cast<std::int8_t>(random_bits() % 13 - 6); });
  auto row_scale = buffer<float>(rows, [] { return 0.01f; });
  auto column_scale = buffer<float>(n, [] { return 0.01f; });
  auto bias = buffer<float>(n, uniform);
  auto zero_point = buffer<std::int32_t>(rows, [] { return 60; });
  auto column_sum = buffer<std::int32_t>(n, [] { return 5; });
  std::int64_t panel = 0;
  auto begin =
      buffer<std::int32_t>(n / kPanel + 1, [&] { return static_cast<std::int32_t>(outliers_before(panel++)); });
  const std::int64_t outliers = outliers_before(n / kPanel);
  auto outlier_k = buffer<std::int32_t>(outliers, [&] { return static_cast<std::int32_t>(random_bits() % k); });
  auto outlier_column = buffer<std::int32_t>(outliers, [] { return static_cast<std::int32_t>(random_bits() % 16); });
  auto outlier_value = buffer<std::int32_t>(outliers, [] { return 200; });
  const std::int64_t windows = k == 3072 ? agnews_fast::long_windows(k) : 0;
  auto row_norm = buffer<float>((rows + kRowTile - 1) / kRowTile * windows, [] { return 600.0f; });
  auto weight_norm = buffer<float>(n / kPanel * windows, [] { return 40.0f; });
  auto wide = buffer<std::int16_t>(rows * kWide, [] { return static_cast<std::int16_t>(random_bits() % 1000); });
  auto wide_weight = buffer<std::int16_t>(n * kWide, [] { return static_cast<std::int16_t>(random_bits() % 100); });
  auto out = buffer<float>(rows * n, [] { return 0.0f; });
  const char* name = activation == Activation::kGelu ? "gemm+gelu"
                     : copies > 1                    ? "gemm cold"
                     : depth == 8                    ? "gemm"
                                                     : "gemm depth 4";
  return {kernels.name,
          name,
          std::to_string(rows) + " x " + std::to_string(k) + " x " + std::to_string(n),
          "MAC",
          static_cast<double>(rows * k * n),
          [=, &kernels, copy = std::int64_t{0}]() mutable {
            copy = (copy + 1) % copies;
            const PackedRows a = {activations->data(),
                                  row_scale->data(),
                                  zero_point->data(),
                                  rows,
                                  k,
                                  windows > 0 ? row_norm->data() : nullptr,
                                  wide->data()};
            const PackedWeights w = {weights->data() + copy * n * k,
                                     column_scale->data(),
                                     bias->data(),
                                     column_sum->data(),
                                     begin->data(),
                                     outlier_k->data(),
                                     outlier_column->data(),
                                     outlier_value->data(),
                                     n,
                                     k,
                                     depth,
                                     windows > 0 ? weight_norm->data() : nullptr,
                                     wide_weight->data(),
                                     kWide};
            kernels.gemm(a, w, 0, n / kPanel, activation, out->data(), n);
          }};
}

// One head of 64 of a text: its operands, and `rows` of its queries.
void add_attention_cases(const Kernels& kernels, std::int64_t rows, std::int64_t tokens, std::vector<Case>& cases) {
  const std::int64_t padded = (tokens + kLanes - 1) / kLanes * kLanes;
  const auto s16 = [](int most) {
    return [=] { return static_cast<std::int16_t>(static_cast<int>(random_bits() % (2 * most + 1)) - most); };
  };
  const auto add = [&](const char* kernel, std::string shape, const char* unit, std::int64_t work,
                       std::function<void()> call) {
    cases.push_back({kernels.name, kernel, std::move(shape), unit, static_cast<double>(work), std::move(call)});
  };
  const std::string m = std::to_string(rows), n = std::to_string(tokens);
  auto x = buffer<float>(tokens * 2320, uniform);
  auto packed = buffer<std::int16_t>(64 * padded, s16(0));
  for (const auto& [name, operand] : {std::pair{"quantize_s16 q", Operand16::kLeft},
                                      {"quantize_s16 k", Operand16::kRightTransposed},
                                      {"quantize_s16 v", Operand16::kRight}}) {
    add(name, n + " x 64", "float", tokens * 64, [=, &kernels, operand = operand] {
      kernels.quantize_s16(x->data(), 2320, tokens, 64, 4095, operand, packed->data());
    });
  }
  auto q = buffer<std::int16_t>(rows * 64, s16(4095)), keys = buffer<std::int16_t>(64 * padded, s16(4095));
  auto values = buffer<std::int16_t>(64 * padded, s16(4095)), weights = buffer<std::int16_t>(rows * padded, s16(900));
  auto original =
      buffer<std::int32_t>(rows * padded, [] { return static_cast<std::int32_t>(random_bits() % 4000000); });
  auto scores = buffer<std::int32_t>(rows * padded, [] { return 0; });
  auto total = buffer<std::int32_t>(rows, [] { return 0; });
  auto scale = buffer<float>(rows, [] { return 1e-6f; }), context = buffer<float>(rows * 2320, uniform);
  add("gemm_s16s32", m + " x 64 x " + n, "MAC", rows * 64 * tokens,
      [=, &kernels] { kernels.gemm_s16s32(q->data(), 64, keys->data(), rows, padded, 64, scores->data(), padded); });
  add("softmax_s16", m + " x " + n, "float", rows * tokens, [=, &kernels] {
    std::memcpy(scores->data(), original->data(), static_cast<std::size_t>(rows * padded) * sizeof(std::int32_t));
    kernels.softmax_s16(scores->data(), padded, rows, tokens, 1e-6f, weights->data(), padded, total->data());
  });
  add("gemm_s16f32", m + " x " + n + " x 64", "MAC", rows * 64 * tokens, [=, &kernels] {
    kernels.gemm_s16f32(weights->data(), padded, values->data(), rows, 64, tokens, scale->data(), context->data(),
                        2320);
  });
}

// The last layer's: 12 heads' queries, one a column, by the tokens' hidden states, and their weights by the same.
void add_first_token_cases(const Kernels& kernels, std::vector<Case>& cases) {
  auto x = buffer<float>(53 * 768, uniform), queries = buffer<float>(768 * 16, uniform);
  auto scores = buffer<float>(64 * 16, uniform), weights = buffer<float>(12 * 64, uniform);
  auto inverse = buffer<float>(12, uniform), mean = buffer<float>(12 * 768, uniform);
  cases.push_back({kernels.name, "gemm_f32 x q", "53 x 768 x 16", "MAC", 53.0 * 768 * 16, [=, &kernels] {
                     kernels.gemm_f32(x->data(), 768, queries->data(), 16, kLanes, 53, 16, 768, nullptr, nullptr,
                                      scores->data(), 16);
                   }});
  cases.push_back({kernels.name, "gemm_f32 p x", "12 x 53 x 768", "MAC", 12.0 * 53 * 768, [=, &kernels] {
                     kernels.gemm_f32(weights->data(), 64, x->data(), 768, kLanes, 12, 768, 53, inverse->data(),
                                      nullptr, mean->data(), 768);
                   }});
}

void add_row_cases(const Kernels& kernels, std::vector<Case>& cases) {
  for (const std::int64_t columns : {std::int64_t{768}, std::int64_t{3072}}) {
    auto x = buffer<float>(kRowTile * columns, uniform);
    auto divisor = buffer<float>(columns, [] { return 1.0f; });
    auto wide_channel = buffer<std::int32_t>(kWide, [=] { return static_cast<std::int32_t>(random_bits() % columns); });
    auto tile = buffer<std::uint8_t>(kRowTile * columns, [] { return std::uint8_t{0}; });
    auto wide = buffer<std::int16_t>(kRowTile * kWide, [] { return std::int16_t{0}; });
    auto scale = buffer<float>(kRowTile, [] { return 0.0f; });
    auto zero_point = buffer<std::int32_t>(kRowTile, [] { return 0; });
    auto norms = buffer<float>(agnews_fast::long_windows(columns), [] { return 0.0f; });
    cases.push_back({kernels.name, "quantize_tile", "6 x " + std::to_string(columns), "float",
                     static_cast<double>(kRowTile * columns), [=, &kernels] {
                       const Quantization q = {divisor->data(), wide_channel->data(), columns, kWide, columns, 127};
                       kernels.quantize_tile(x->data(), columns, kRowTile, q, tile->data(), wide->data(), scale->data(),
                                             zero_point->data(), columns == 3072 ? norms->data() : nullptr);
                     }});
  }
  auto x = buffer<float>(6 * 768, uniform), residual = buffer<float>(6 * 768, uniform);
  auto y = buffer<float>(6 * 768, uniform), gamma = buffer<float>(768, uniform);
  cases.push_back({kernels.name, "layer_norm", "6 x 768", "float", 6 * 768.0, [=, &kernels] {
                     kernels.layer_norm(x->data(), residual->data(), 768, 6, 768, gamma->data(), gamma->data(), 1e-12f,
                                        y->data(), nullptr);
                   }});
  auto word = buffer<std::int8_t>(768, [] { return static_cast<std::int8_t>(random_bits()); });
  cases.push_back({kernels.name, "embed", "768", "float", 768.0,
                   [=, &kernels] { kernels.embed(word->data(), 0.01f, x->data(), 768, y->data()); }});
  cases.push_back({kernels.name, "project_embed", "768", "float", 768.0, [=, &kernels] {
                     kernels.project_embedding(word->data(), 0.01f, word->data(), 0.01f, 10.0f, x->data(), 768,
                                               y->data());
                   }});
  for (const std::int64_t tokens : {std::int64_t{53}, std::int64_t{512}}) {
    const std::int64_t rows = std::min<std::int64_t>(48, tokens), padded = (tokens + kLanes - 1) / kLanes * kLanes;
    auto original = buffer<float>(rows * padded, uniform), scores = buffer<float>(rows * padded, uniform);
    auto inverse = buffer<float>(rows, uniform);
    cases.push_back({kernels.name, "softmax", std::to_string(rows) + " x " + std::to_string(tokens), "float",
                     static_cast<double>(rows * tokens), [=, &kernels] {
                       std::memcpy(scores->data(), original->data(),
                                   static_cast<std::size_t>(rows * padded) * sizeof(float));
                       kernels.softmax(scores->data(), padded, rows, tokens, inverse->data());
                     }});
    add_attention_cases(kernels, rows, tokens, cases);
  }
}

// What a model is checked with when it is loaded: one panel of ffn2, one word's q, k and v.
void add_load_cases(const Kernels& kernels, std::vector<Case>& cases) {
  constexpr std::int64_t k = 3072;
  auto weights = buffer<std::int8_t>(k * kPanel, [] { return static_cast<std::int8_t>(random_bits() % 255); });
  auto sums = std::make_shared<agnews_fast::PanelSums>();
  auto norms = buffer<float>(agnews_fast::long_windows(k), [] { return 0.0f; });
  auto sum = std::make_shared<std::int32_t>();
  const auto add = [&](const char* kernel, const char* shape, std::int64_t bytes, std::function<void()> call) {
    cases.push_back({kernels.name, kernel, shape, "byte", static_cast<double>(bytes), std::move(call)});
  };
  add("panel_sums", "3072 x 16", k * kPanel, [=, &kernels] { kernels.panel_sums(weights->data(), k, 8, *sums); });
  if (kernels.window_norms != nullptr) {
    add("window_norms", "3072 x 16", k * kPanel, [=, &kernels] {
      PackedWeights w = {};
      w.data = weights->data();
      w.n = kPanel;
      w.k = k;
      kernels.window_norms(w, norms->data());
    });
  }
  add("sum_s8", "2304", 2304, [=, &kernels] { *sum = kernels.sum_s8(weights->data(), 2304); });
}

}  // namespace

int main(int argc, char** argv) {
  int rounds = 9;
  std::string only;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--rounds") == 0) rounds = std::max(1, std::atoi(argv[i + 1]));
    if (std::strcmp(argv[i], "--isa") == 0) only = argv[i + 1];
  }
  std::vector<Case> cases;
  for (const Kernels* kernels : agnews_fast::available_kernels()) {
    if (only.empty() ? std::strcmp(kernels->name, "scalar") == 0 : only != kernels->name) continue;
    for (const std::int64_t rows : {48, 96, 192, 384}) {
      for (const auto& [k, n] :
           {std::pair<std::int64_t, std::int64_t>{768, 768}, {768, 2304}, {768, 3072}, {3072, 768}}) {
        cases.push_back(gemm_case(*kernels, rows, k, n, 8, Activation::kNone));
      }
    }
    for (const std::int64_t rows : {1, 2, 3, 6, 12}) {
      cases.push_back(gemm_case(*kernels, rows, 768, 2304, 8, Activation::kNone));
    }
    for (const auto& [k, n] : {std::pair<std::int64_t, std::int64_t>{768, 3072}, {3072, 768}}) {
      cases.push_back(gemm_case(*kernels, 48, k, n, 8, Activation::kNone, kColdCopies));
    }
    cases.push_back(gemm_case(*kernels, 96, 768, 3072, 4, Activation::kNone));
    cases.push_back(gemm_case(*kernels, 96, 768, 3072, 8, Activation::kGelu));
    add_row_cases(*kernels, cases);
    add_load_cases(*kernels, cases);
    add_first_token_cases(*kernels, cases);
  }
  for (int round = 0; round < rounds; ++round) {
    for (Case& c : cases) {
      const double frequency = cycles_per_second();
      c.call();
      // At least 2 ms a measurement, judged by a first timed call.
      double seconds = cpu_seconds();
      c.call();
      seconds = cpu_seconds() - seconds;
      const int repeats = std::max(1, static_cast<int>(2e-3 / std::max(seconds, 1e-8)));
      const double start = cpu_seconds();
      for (int i = 0; i < repeats; ++i) c.call();
      c.per_cycle.push_back(c.work * repeats / (cpu_seconds() - start) / frequency);
    }
  }
  std::printf("%-11s %-14s %-18s %10s %10s %10s\n", "isa", "kernel", "rows x k x n", "median", "least", "unit/cycle");
  for (Case& c : cases) {
    std::sort(c.per_cycle.begin(), c.per_cycle.end());
    std::printf("%-11s %-14s %-18s %10.2f %10.2f %10s\n", c.isa.c_str(), c.kernel.c_str(), c.shape.c_str(),
                c.per_cycle[c.per_cycle.size() / 2], c.per_cycle.front(), c.unit.c_str());
  }
  return 0;
}
