// The forward pass of one packed batch: ids -> embeddings -> encoder layers -> head.
#pragma once

#include <array>
#include <cstdint>
#include <iterator>
#include <vector>

#include "kernels/kernels.h"
#include "model/batch.h"
#include "model/model.h"
#include "runtime/aligned_buffer.h"
#include "runtime/team.h"

namespace agnews_fast {

// Float rows of activations and the same rows quantised for the next matrix product.
struct Rows {
  std::int64_t rows = 0;
  AlignedBuffer<float> hidden;             // (rows, padded hidden)
  AlignedBuffer<float> qkv;                // (rows, qkv stride); the context replaces q
  AlignedBuffer<float> projected;          // (rows, padded hidden): output of `out` and `ffn2`, before the residual
  AlignedBuffer<std::uint8_t> packed;      // tiles of (rows, k)
  AlignedBuffer<float> scale;              // (rows)
  AlignedBuffer<std::int32_t> zero_point;  // (rows)
};

// All memory that a forward pass of up to so many tokens and texts needs; kept and reused, grows only.
struct Workspace {
  void grow(const Model& model, const Batch& batch, int members);

  Rows tokens;  // every token
  Rows firsts;  // the first token of each text, which is all that the last layer computes beyond k and v
  // One block of the feed-forward network, sized to stay in the second-level cache.
  AlignedBuffer<float> inner;                    // (kFfnRows, padded ffn)
  AlignedBuffer<std::uint8_t> inner_packed;      // tiles of (kFfnRows, k)
  AlignedBuffer<float> inner_scale;              // (kFfnRows)
  AlignedBuffer<std::int32_t> inner_zero_point;  // (kFfnRows)
  AlignedBuffer<float> pooled;                   // (texts, padded hidden)
  AlignedBuffer<float> logits;                   // (texts, padded labels)
  struct Attention {
    AlignedBuffer<float> keys;         // (head, padded tokens): one head's keys, transposed
    AlignedBuffer<float> scores;       // (kQueryRows, padded tokens)
    AlignedBuffer<float> inverse_sum;  // (kQueryRows)
  };
  std::vector<Attention> attention;  // one a member
};

inline constexpr std::int64_t kFfnRows = 96;    // a multiple of kRowTile
inline constexpr std::int64_t kQueryRows = 48;  // queries scored at a time, a multiple of kRowTile

// The largest magnitude seen in each input channel of each Linear, by Linear::index.
using ChannelMaxima = std::vector<std::vector<float>>;

enum class Stage { kEmbeddings, kQuantize, kQkv, kAttention, kOut, kFfn1, kFfn2, kLayerNorm, kHead };
inline constexpr const char* kStageNames[] = {"embeddings", "quantize", "qkv",        "attention", "out",
                                              "ffn1+gelu",  "ffn2",     "layer_norm", "head"};
inline constexpr std::size_t kStages = std::size(kStageNames);

// What a forward pass tells about itself, beside its results; for teams of one.
struct Observer {
  ChannelMaxima* maxima = nullptr;
  std::array<double, kStages>* seconds = nullptr;  // added to
};

class Forward {
 public:
  Forward(const Model& model, const Kernels& kernels, Workspace& workspace, Observer observer = {})
      : model_(model), kernels_(kernels), ws_(workspace), observer_(observer) {}

  // Writes logits (texts, labels) and first_token (texts, hidden), the last hidden state of each text's first token.
  // All members of the team call it with the same batch; the workspace has been grown for it.
  void run(const Batch& batch, const Member& member, float* logits, float* first_token);

 private:
  void embed(const Batch& batch, const Member& member);
  void take_firsts(const Batch& batch, const Member& member);
  void quantize(const float* x, std::int64_t stride, std::int64_t rows, const Linear& linear, const Member& member,
                std::uint8_t* packed, float* scale, std::int32_t* zero_point);
  void quantize_hidden(Rows& x, const Linear& linear, const Member& member);
  void project(Stage stage, const Linear& linear, const PackedRows& x, const Member& member, Range panels,
               Activation activation, float* out, std::int64_t out_stride);
  void attention(const Batch& batch, const Member& member, Rows& queries, bool first_only);
  void feed_forward(const EncoderLayer& layer, const Member& member, Rows& x);
  void add_norm(const LayerNorm& norm, const Member& member, Rows& x);
  void encoder_layer(const EncoderLayer& layer, const Batch& batch, const Member& member, bool last);
  void head(const Batch& batch, const Member& member, float* logits, float* first_token);

  std::int64_t qkv_stride() const;

  const Model& model_;
  const Kernels& kernels_;
  Workspace& ws_;
  Observer observer_;
};

}  // namespace agnews_fast
