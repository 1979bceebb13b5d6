// Attention: for every token, and in the last layer for the first token of each text alone.
#include <algorithm>
#include <cstring>

#include "model/forward.h"

namespace agnews_fast {

void Forward::attention(const Linear& qkv, const Batch& batch, const Member& member) {
  Rows& tokens = ws_.tokens;
  const std::int64_t heads = model_.config.heads;
  if (&qkv == &model_.layers.front().qkv) {
    first_projection(qkv, batch, member);
  } else {
    quantize_hidden(tokens, qkv, member);
    project(Stage::kQkv, qkv, tokens.quantized.view(tokens.rows, qkv), member, panels_of(qkv), Activation::kNone,
            tokens.qkv.data(), model_.config.qkv_stride());
  }
  member.barrier();
  member.deal(batch.texts * heads, 1, [&](Range items) {
    for (std::int64_t item = items.begin; item < items.end; ++item) {
      attend(batch, item / heads, item % heads, ws_.attention[static_cast<std::size_t>(member.rank)]);
    }
  });
  member.barrier();
}

// Of the first layer: frequent words' q, k and v are looked up; the rows of the others are gathered, multiplied, and
// moved to their places, some columns of all rows at a time.
void Forward::first_projection(const Linear& qkv, const Batch& batch, const Member& member) {
  Rows& tokens = ws_.tokens;
  if (member.rank == 0) find_computed_rows(batch);
  member.barrier();
  if (ws_.computed > 0) {
    float* gathered = tokens.projected.data();  // (computed, padded hidden)
    gather_computed_rows(row_tiles(member, ws_.computed), gathered);
    quantize(gathered, model_.config.padded_hidden(), ws_.computed, qkv, member, tokens.quantized);
    member.barrier();
  }
  const PackedRows x = tokens.quantized.view(ws_.computed, qkv);
  const StageTimer timer(observer_, Stage::kQkv);
  member.deal(panels_of(qkv).end, kDealtPanels, [&](Range panels) {
    if (x.rows > 0) {
      kernels_.gemm(x, qkv.weights, panels.begin, panels.end, Activation::kNone, tokens.qkv.data(),
                    model_.config.qkv_stride());
    }
    const Range columns = {panels.begin * kPanel, panels.end * kPanel};
    move_computed_rows(columns);
    look_up(batch, columns);
  });
}

void Forward::find_computed_rows(const Batch& batch) {
  const std::int32_t* ids = batch.ids + batch.offsets[0];
  ws_.computed = 0;
  for (std::int64_t row = 0; row < batch.tokens(); ++row) {
    if (model_.first_projection.row[ids[row]] < 0) ws_.computed_rows.data()[ws_.computed++] = row;
  }
}

void Forward::gather_computed_rows(Range rows, float* gathered) {
  const StageTimer timer(observer_, Stage::kQkv);
  const std::int64_t hidden = model_.config.padded_hidden();
  for (std::int64_t row = rows.begin; row < rows.end; ++row) {
    std::memcpy(gathered + row * hidden, ws_.tokens.hidden.data() + ws_.computed_rows.data()[row] * hidden,
                static_cast<std::size_t>(hidden) * sizeof(float));
  }
}

void Forward::move_computed_rows(Range columns) {
  const std::int64_t stride = model_.config.qkv_stride();
  const std::int64_t* place = ws_.computed_rows.data();
  float* from = ws_.tokens.qkv.data() + columns.begin;
  // From the last on: a row's place is never before it, so that nothing is overwritten that has yet to move.
  for (std::int64_t row = ws_.computed - 1; row >= 0 && place[row] != row; --row) {
    std::memcpy(from + place[row] * stride, from + row * stride,
                static_cast<std::size_t>(columns.end - columns.begin) * sizeof(float));
  }
}

// Some columns of q, k and v of the words that first_projection has.
void Forward::look_up(const Batch& batch, Range columns) {
  const FirstProjection& first = model_.first_projection;
  const std::int64_t context = model_.config.context();
  for (std::int64_t text = 0; text < batch.texts; ++text) {
    for (std::int64_t position = 0; position < batch.length(text); ++position) {
      const std::int64_t token = batch.offsets[text] + position, row = token - batch.offsets[0];
      const std::int64_t word = first.row[batch.ids[token]];
      if (word < 0) continue;
      for (std::int64_t part = 0; part < 3; ++part) {  // q, k, v
        const std::int64_t begin = std::max(columns.begin, part * context);
        const std::int64_t end = std::min(columns.end, (part + 1) * context);
        if (begin >= end) continue;
        kernels_.project_embedding(first.words.weight + word * 3 * context + begin, first.words.scale[3 * word + part],
                                   first.positions.weight + position * 3 * context + begin,
                                   first.positions.scale[3 * position + part], ws_.embedding_rstd.data()[row],
                                   first.bias + begin, end - begin,
                                   ws_.tokens.qkv.data() + row * model_.config.qkv_stride() + begin);
      }
    }
  }
}

void Forward::attend(const Batch& batch, std::int64_t text, std::int64_t head, Workspace::Attention& scratch) {
  const StageTimer timer(observer_, Stage::kAttention);
  const Config& config = model_.config;
  const std::int64_t head_size = config.head(), stride = config.qkv_stride();
  const std::int64_t tokens = batch.length(text), padded = round_up(tokens, kLanes);
  const int levels = config.score_levels();
  std::int32_t* scores = scratch.integer_scores.data();
  std::int16_t* weights = scratch.weights.data();

  // (tokens, head) each, `stride` apart.
  float* q = ws_.tokens.qkv.data() + (batch.offsets[text] - batch.offsets[0]) * stride + head * head_size;
  const auto quantize16 = [&](const float* x, int most, Operand16 operand, AlignedBuffer<std::int16_t>& out) {
    return kernels_.quantize_s16(x, stride, tokens, head_size, most, operand, out.data());
  };
  const float score_scale = quantize16(q, levels, Operand16::kLeft, scratch.integer_queries) *
                            quantize16(q + config.context(), levels, Operand16::kRightTransposed, scratch.integer_keys);
  const float value_scale =
      quantize16(q + 2 * config.context(), kValueLevels, Operand16::kRight, scratch.integer_values);
  for (std::int64_t begin = 0; begin < tokens; begin += kQueryRows, q += kQueryRows * stride) {
    const std::int64_t rows = std::min(kQueryRows, tokens - begin);
    std::int32_t total[kQueryRows];
    float context_scale[kQueryRows];
    kernels_.gemm_s16s32(scratch.integer_queries.data() + begin * head_size, head_size, scratch.integer_keys.data(),
                         rows, padded, head_size, scores, padded);
    kernels_.softmax_s16(scores, padded, rows, tokens, score_scale, weights, padded, total);
    // No weights at all come from scores that are no numbers; then 0 times this is none either.
    for (std::int64_t i = 0; i < rows; ++i) context_scale[i] = value_scale / static_cast<float>(total[i]);
    kernels_.gemm_s16f32(weights, padded, scratch.integer_values.data(), rows, head_size, tokens, context_scale, q,
                         stride);
  }
}

void Forward::last_attention(const Batch& batch, const Member& member) {
  const FirstTokenAttention& last = model_.last_attention;
  const std::int64_t heads = model_.config.heads, head_size = model_.config.head();
  const std::int64_t hidden = model_.config.padded_hidden(), stride = model_.config.qkv_stride();
  Rows& firsts = ws_.firsts;
  Workspace::Attention& scratch = ws_.attention[static_cast<std::size_t>(member.rank)];
  const Range my_heads = member.share(heads);

  member.barrier();
  take_firsts(batch, member);
  quantize_hidden(firsts, last.query, member);
  project(Stage::kQkv, last.query, firsts.quantized.view(firsts.rows, last.query), member, panels_of(last.query),
          Activation::kNone, firsts.qkv.data(), stride);
  for (std::int64_t begin = 0; begin < batch.texts; begin += kTextBlock) {
    const std::int64_t texts = std::min(kTextBlock, batch.texts - begin);
    float* q = firsts.qkv.data() + begin * stride;  // (texts, heads, head)
    float* by_head = ws_.by_head.data();            // (texts, heads, hidden)
    // Multiplies one head of each text by that head's own matrix.
    const auto multiply = [&](const Linear& linear, std::int64_t head, const float* x, std::int64_t x_stride,
                              std::int64_t outputs, float* out, std::int64_t out_stride) {
      quantize(x, x_stride, texts, linear, Member{}, scratch.rows);
      project(Stage::kQkv, linear, scratch.rows.view(texts, linear), Member{},
              {head * outputs / kPanel, (head + 1) * outputs / kPanel}, Activation::kNone, out, out_stride);
    };
    member.barrier();
    for (std::int64_t head = my_heads.begin; head < my_heads.end; ++head) {
      multiply(last.key, head, q + head * head_size, stride, hidden, by_head, heads * hidden);
    }
    member.barrier();
    const Range my_texts = member.share(texts);
    for (std::int64_t i = my_texts.begin; i < my_texts.end; ++i) {
      attend_from_first_token(batch, begin + i, by_head + i * heads * hidden, scratch);
    }
    member.barrier();
    for (std::int64_t head = my_heads.begin; head < my_heads.end; ++head) {
      multiply(last.value, head, by_head + head * hidden, heads * hidden, head_size, q, stride);
    }
  }
  member.barrier();
}

void Forward::take_firsts(const Batch& batch, const Member& member) {
  const std::int64_t hidden = model_.config.padded_hidden();
  const Range rows = row_tiles(member, batch.texts);
  for (std::int64_t text = rows.begin; text < rows.end; ++text) {
    const std::int64_t from = batch.offsets[text] - batch.offsets[0];
    std::memcpy(ws_.firsts.hidden.data() + text * hidden, ws_.tokens.hidden.data() + from * hidden,
                static_cast<std::size_t>(hidden) * sizeof(float));
  }
}

// by_head (heads, hidden): K^T q of each head comes in, the sum of p(t) * x(t) goes out.
void Forward::attend_from_first_token(const Batch& batch, std::int64_t text, float* by_head,
                                      Workspace::Attention& scratch) {
  const StageTimer timer(observer_, Stage::kAttention);
  const Config& config = model_.config;
  const std::int64_t hidden = config.padded_hidden(), heads = config.heads, padded_heads = round_up(heads, kLanes);
  const std::int64_t tokens = batch.length(text), padded = round_up(tokens, kLanes);
  const float* x = ws_.tokens.hidden.data() + (batch.offsets[text] - batch.offsets[0]) * hidden;  // (tokens, hidden)
  float* queries = scratch.queries.data();
  float* scores = scratch.scores.data();
  // One column a head, so that x is read by rows.
  kernels_.transpose(by_head, hidden, heads, hidden, queries, padded_heads);
  kernels_.gemm_f32(x, hidden, queries, padded_heads, kLanes, tokens, padded_heads, config.hidden, nullptr, nullptr,
                    scratch.scores_by_token.data(), padded_heads);
  kernels_.transpose(scratch.scores_by_token.data(), padded_heads, tokens, padded_heads, scores, padded);
  kernels_.softmax(scores, padded, heads, tokens, scratch.inverse_sum.data());
  kernels_.gemm_f32(scores, padded, x, hidden, kLanes, heads, hidden, tokens, scratch.inverse_sum.data(), nullptr,
                    by_head, hidden);
}

}  // namespace agnews_fast
