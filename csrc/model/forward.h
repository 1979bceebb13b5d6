// The forward pass of one packed batch: ids -> embeddings -> encoder layers -> head.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"
#include "model/batch.h"
#include "model/model.h"
#include "model/observer.h"
#include "model/workspace.h"
#include "runtime/team.h"

namespace agnews_fast {

// The fewest panels of a product that a member of a team takes at a time, at the end. AVX-512 computes 4 together where
// it can, which most parts allow; with 4 here members wait longer for the last.
inline constexpr std::int64_t kDealtPanels = 2;

class Forward {
 public:
  Forward(const Model& model, const Kernels& kernels, Workspace& workspace, Observer observer = {})
      : model_(model), kernels_(kernels), ws_(workspace), observer_(observer) {}

  // Writes logits (texts, labels) and first_token (texts, hidden), the last hidden state of each text's first token.
  // All members of the team call it with the same batch; the workspace has been grown for it.
  void run(const Batch& batch, const Member& member, float* logits, float* first_token);

 private:
  void embed(const Batch& batch, const Member& member);
  // forward_attention.cpp: both leave the context in the place of q, of every token or of the first ones.
  void attention(const Linear& qkv, const Batch& batch, const Member& member);
  void last_attention(const Batch& batch, const Member& member);
  void take_firsts(const Batch& batch, const Member& member);
  void attend(const Batch& batch, std::int64_t text, std::int64_t head, Workspace::Attention& scratch);
  void attend_from_first_token(const Batch& batch, std::int64_t text, float* by_head, Workspace::Attention& scratch);
  // The first layer's q, k and v: looked up, or computed for the rows that Model::first_projection lacks.
  void first_projection(const Linear& qkv, const Batch& batch, const Member& member);
  void find_computed_rows(const Batch& batch);
  void gather_computed_rows(Range rows, float* gathered);
  void move_computed_rows(Range columns);
  void look_up(const Batch& batch, Range columns);

  void after_attention(const EncoderLayer& layer, const Member& member, Rows& x);
  void feed_forward(const EncoderLayer& layer, const Member& member, Rows& x);
  void head(const Batch& batch, const Member& member, float* logits, float* first_token);

  void quantize(const float* x, std::int64_t stride, std::int64_t rows, const Linear& linear, const Member& member,
                QuantizedRows& out);
  void quantize_hidden(Rows& x, const Linear& linear, const Member& member);
  void project(Stage stage, const Linear& linear, const PackedRows& x, const Member& member, Range panels,
               Activation activation, float* out, std::int64_t out_stride);
  void add_norm(const LayerNorm& norm, const Member& member, Rows& x);

  const Model& model_;
  const Kernels& kernels_;
  Workspace& ws_;
  Observer observer_;
};

// A member's part of some rows, in whole tiles.
Range row_tiles(const Member& member, std::int64_t rows);

// All columns of a Linear.
inline Range panels_of(const Linear& linear) { return {0, linear.weights.n / kPanel}; }

}  // namespace agnews_fast
