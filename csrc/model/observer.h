// What a forward pass tells about itself, beside its results: for measuring, and for the quantiser.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <iterator>
#include <vector>

namespace agnews_fast {

// The largest magnitude seen in each input channel of each Linear, by Linear::index.
using ChannelMaxima = std::vector<std::vector<float>>;

enum class Stage { kEmbeddings, kQuantize, kQkv, kAttention, kOut, kFfn1, kFfn2, kLayerNorm, kHead };
inline constexpr const char* kStageNames[] = {"embeddings", "quantize", "qkv",        "attention", "out",
                                              "ffn1+gelu",  "ffn2",     "layer_norm", "head"};
inline constexpr std::size_t kStages = std::size(kStageNames);

// For teams of one.
struct Observer {
  ChannelMaxima* maxima = nullptr;
  std::array<double, kStages>* seconds = nullptr;  // added to
};

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

}  // namespace agnews_fast
