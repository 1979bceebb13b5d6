// The contract of every kernel: what it computes, in which order, on which layout.
//
// The scalar kernels (scalar/) are the specification; every other instruction set must give the same bits. What makes
// that possible:
//   * integer sums are exact (the model file is checked for it), so their order does not matter;
//   * a floating-point sum over a row goes through 16 virtual lanes: lane j adds the elements j, j + 16, j + 32, ... in
//     that order, then lanes are added in pairs 8, 4, 2 and 1 apart ("the lane tree");
//   * a floating-point matrix product is one fma chain per output, over k = 0, 1, 2, ...;
//   * where the text below says fma it is one rounding, everywhere; all else is rounded operation by operation.
//
// Sizes count elements, never bytes. Rows of float matrices are padded with zeros to a multiple of kLanes and start on
// 64-byte boundaries, so no kernel has a tail.
#pragma once

#include <cstddef>
#include <cstdint>

namespace agnews_fast {

inline constexpr int kRowTile = 6;   // rows of activations that a GEMM tile holds
inline constexpr int kPanel = 16;    // output columns of a packed weight panel
inline constexpr int kGroup = 4;     // consecutive k that meet in one 32-bit lane
inline constexpr int kLanes = 16;    // virtual lanes of a floating-point row sum
inline constexpr int kMaxDepth = 8;  // products added in 16 bits before they are widened; k is padded to kGroup * this
inline constexpr int kKBlock = kGroup * kMaxDepth;

// A "long window": so many consecutive groups of k, the first from k = 0 on. Where one is known not to overflow 16 bits
// (see PackedRows and PackedWeights), its products need not be widened in between.
inline constexpr int kLongDepth = 4 * kMaxDepth;
// The length of an array with a number for each whole long window in k; what pads it is 0.
inline constexpr std::int64_t long_windows(std::int64_t k) { return (k / (kGroup * kLongDepth) + 7) / 8 * 8; }

// A wide channel's activations are 16-bit integers in steps of this part of the row's scale.
inline constexpr int kWideSteps = 128;

// Below this a row's range is taken as zero: its reciprocal would overflow. Above the largest, it is not finite.
inline constexpr float kSmallestRange = 1e-30f;
inline constexpr float kLargestRange = 3.402823466e+38f;

// Rows of u8 activations, in tiles of kRowTile rows (the last tile has what is left): tile t starts at
// data + 6 * t * k and is laid out [k / 4][rows of the tile][4]. value = (u8 - zero_point[row]) * scale[row].
struct PackedRows {
  const std::uint8_t* data;
  const float* scale;              // (rows)
  const std::int32_t* zero_point;  // (rows)
  std::int64_t rows;
  std::int64_t k;  // multiple of kKBlock
  // (tiles, long_windows(k)): the largest sqrt(sum of u8^2), rounded to float, of a row's activations that meet in a
  // 16-bit lane (two neighbouring k of each group) of that window; or infinity. Null: not known.
  const float* window_norm = nullptr;
  // The wide channels, of which PackedWeights says how many. Tile t starts at wide + 6 * t * their number and is laid out
  // [wide / 2][rows of the tile][2]. value = wide * scale[row] / kWideSteps.
  const std::int16_t* wide = nullptr;
};

// int8 weights [n / 16][k / 4][16 columns][4], with what did not fit as exact integers:
// weight(k, n) = (packed + sum of the outliers at (k, n)) * scale[n].
// depth: how many consecutive groups of 4 k may be added in 16 bits (u8 x s8 pairs) without overflow; see
// model/overflow.h for the proof obligation.
struct PackedWeights {
  const std::int8_t* data;
  const float* scale;                  // (n)
  const float* bias;                   // (n)
  const std::int32_t* column_sum;      // (n): sum over k of the integer weights, outliers included
  const std::int32_t* outlier_begin;   // (n / 16 + 1): the outliers of each panel in the three lists below
  const std::int32_t* outlier_k;       // (outliers)
  const std::int32_t* outlier_column;  // (outliers), 0..15 within the panel
  const std::int32_t* outlier_value;   // (outliers), fits 16 bits
  std::int64_t n;                      // multiple of kPanel
  std::int64_t k;                      // multiple of kKBlock
  int depth;                           // 4 or 8
  // (n / 16, long_windows(k)): likewise sqrt(sum of weight^2) of the panel's columns, over the positive weights of a lane
  // or over the negative ones. By Cauchy and Schwarz neither part of a sum is larger than the product of the two norms,
  // and since activations are not negative, their difference is not either. Null: not known.
  const float* window_norm = nullptr;
  // The weights of the wide channels, in units of scale[n] * kWideSteps: [n / 16][wide / 2][16 columns][2]. Their packed
  // weights are 0.
  const std::int16_t* wide_weight = nullptr;
  std::int64_t wide = 0;  // even
};

// What a panel of packed weights adds up to.
struct PanelSums {
  std::int32_t sum[kPanel];        // of each column
  std::int32_t magnitude[kPanel];  // of each column's magnitudes
  // The most that positive weights, or the magnitudes of negative ones, add up to in a window: in `depth` consecutive
  // groups, in one 16-bit lane.
  std::int32_t largest_window;
  std::int32_t lowest;  // weight, or 0
};

// How float activations (x) become u8: v = x * inverse_divisor[column]; lo = min(0, v...), hi = max(0, v...);
// scale = (hi - lo) / levels, inverse = levels / (hi - lo), zero_point = rint(-lo * inverse),
// u8 = clamp(rint(fma(v, inverse, zero_point)), 0, levels). A range below kSmallestRange gives scale 0, zero point 0 and
// all zeros. One that is not finite, or a value that is not, gives scale NaN, zero point 0 and all zeros, and so a
// product of this row that is no number.
// A few channels are far larger than the rest, and would set the row's range. They become wide: so small a multiple of
// them stands among the others that it does not matter (and meets weights of 0), and
// wide[i] = rint((v * inverse) * kWideSteps) of channel wide_channel[i], which fits 16 bits since |v| <= hi - lo.
struct Quantization {
  const float* inverse_divisor;      // (columns)
  const std::int32_t* wide_channel;  // (wide)
  std::int64_t columns;              // multiple of kLanes
  std::int64_t wide;                 // even
  std::int64_t k;                    // multiple of kKBlock, at least columns; slots past those are 0
  int levels;                        // 127 or 255
};

enum class Activation { kNone, kGelu, kRelu };

// Operands of the 16-bit products. The left one is rows of (rows, k) with an even stride, the right one is
// [n / 16][round_up(k, 2) / 2][16 columns][2]: two consecutive k of a column meet in one 32-bit lane. What pads an odd k
// is 0 in the right operand and any number in the left one.
enum class Operand16 {
  kLeft,             // x as the left operand
  kRight,            // x as the right one: k = rows, n = columns
  kRightTransposed,  // x^T as the right one: k = columns, n = rows padded with zeros to a multiple of kPanel
};

// The weights of softmax_s16: at most this much in a row together, but for rounding each, and no single one larger than
// the other. With values of kValueLevels their products are exact for rows of up to 65536 scores: a row's weights add up
// to kWeightSum, 2.4e-4 of it (the rounding of the float sum) and half a unit a score at most, and
// (490000 * 1.00024 + 65536 / 2) * 4095 < 2^31.
inline constexpr float kWeightSum = 490000.0f;
inline constexpr float kLargestWeight = 32767.0f;
inline constexpr int kValueLevels = 4095;

// One instruction set. Pointers to float rows are 64-byte aligned, strides are multiples of kLanes.
struct Kernels {
  const char* name;
  bool (*supported)();

  // out[row][16 * panel + c] = activation(fma(float(acc - zero_point * column_sum), row scale * column scale, bias))
  // for the panels [panel_begin, panel_end); acc is the exact int32 sum of u8 * weight over k and of wide * wide weight.
  // gelu(x) = x * (0.5 + t * P(t * t)), t = x clamped to +-kGeluClamp (kernels/polynomials.h).
  // relu(x) = x <= 0 ? 0 : x. All three keep a NaN.
  void (*gemm)(const PackedRows& a, const PackedWeights& w, std::int64_t panel_begin, std::int64_t panel_end,
               Activation activation, float* out, std::int64_t out_stride);

  // Writes PackedWeights::window_norm of w (n / 16, long_windows(k)). Null where window norms are of no use to gemm.
  void (*window_norms)(const PackedWeights& w, float* norms);

  // Quantises `rows` <= kRowTile float rows into one packed tile of that many rows, and one of their wide channels.
  // window_norm (long_windows(k)), see PackedRows, may be null; instruction sets that have no use for it leave it alone.
  void (*quantize_tile)(const float* x, std::int64_t stride, std::int64_t rows, const Quantization& q,
                        std::uint8_t* tile, std::int16_t* wide, float* scale, std::int32_t* zero_point,
                        float* window_norm);

  // For each of `rows` rows: out = (v - mean) * rstd * gamma + beta with v = x + residual (v = x where residual is null),
  // over `columns` values: mean = lane tree / columns; var = lane tree of fma(d, d, lane) / columns with d = v - mean;
  // rstd = 1 / sqrt(var + epsilon); out = fma(d * rstd, gamma, beta). What pads x and residual is not looked at, what
  // pads out becomes 0. gamma and beta are zero-padded. x, residual and out have rows `stride` apart; out may be x or
  // residual. rstds (rows) receives each row's rstd; it may be null.
  void (*layer_norm)(const float* x, const float* residual, std::int64_t stride, std::int64_t rows,
                     std::int64_t columns, const float* gamma, const float* beta, float epsilon, float* out,
                     float* rstds);

  // out[c] = fma(float(word[c]), word_scale, position[c]); columns is a multiple of kLanes.
  void (*embed)(const std::int8_t* word, float word_scale, const float* position, std::int64_t columns, float* out);

  // out[c] = fma(fma(float(word[c]), word_scale, float(position[c]) * position_scale), rstd, bias[c]); columns is a
  // multiple of kLanes, word and position start on 16-byte boundaries.
  void (*project_embedding)(const std::int8_t* word, float word_scale, const std::int8_t* position,
                            float position_scale, float rstd, const float* bias, std::int64_t columns, float* out);

  // In place over the n scores of each of `rows` rows: exp(score - max); the padding up to a multiple of kLanes becomes
  // 0. inverse_sum[row] = 1 / lane tree. A NaN among the scores makes it NaN, and so does an infinite highest one.
  void (*softmax)(float* scores, std::int64_t stride, std::int64_t rows, std::int64_t n, float* inverse_sum);

  // out[c][r] = x[r][c]; rows of out are zero-padded from `rows` up to a multiple of kLanes. columns is a multiple of
  // kLanes.
  void (*transpose)(const float* x, std::int64_t stride, std::int64_t rows, std::int64_t columns, float* out,
                    std::int64_t out_stride);

  // c[i][j] = scale[i] * (fma chain over k = 0.. of a[i][k] * b[k][j], from bias[j] or 0); n is a multiple of kLanes.
  // b[k][j] is at b + k * b_stride + j / kLanes * b_panel_stride + j % kLanes: a plain matrix has b_panel_stride = kLanes.
  // scale and bias may be null; then nothing is multiplied or added.
  void (*gemm_f32)(const float* a, std::int64_t a_stride, const float* b, std::int64_t b_stride,
                   std::int64_t b_panel_stride, std::int64_t m, std::int64_t n, std::int64_t k, const float* scale,
                   const float* bias, float* c, std::int64_t c_stride);

  // Quantises the (rows, columns) matrix x to 16-bit integers -levels..levels with one scale, which it returns, and lays
  // them out as an operand: largest = max |x|, value = rint(x * (levels / largest)), scale = largest / levels. Below
  // kSmallestRange the scale is 0 and all values are 0. Where x holds an infinity or a NaN the scale is NaN and all
  // values are 0. columns is a multiple of kLanes, levels is at most 32767.
  float (*quantize_s16)(const float* x, std::int64_t stride, std::int64_t rows, std::int64_t columns, int levels,
                        Operand16 operand, std::int16_t* out);

  // c[i][j] = sum over k of a[i][k] * b[k][j], exact: k * max |a| * max |b| is less than 2^31. n is a multiple of kPanel.
  void (*gemm_s16s32)(const std::int16_t* a, std::int64_t a_stride, const std::int16_t* b, std::int64_t m,
                      std::int64_t n, std::int64_t k, std::int32_t* c, std::int64_t c_stride);

  // c[i][j] = float(sum over k of a[i][k] * b[k][j]) * scale[i]; the same sum.
  void (*gemm_s16f32)(const std::int16_t* a, std::int64_t a_stride, const std::int16_t* b, std::int64_t m,
                      std::int64_t n, std::int64_t k, const float* scale, float* c, std::int64_t c_stride);

  // For each of `rows` rows of n integer scores, which differ by less than 2^31: e = 2^t as in polynomials.h with
  // t = float(score - highest) * (scale * kLog2E); factor = kWeightSum / lane tree of e, or kLargestWeight where that is
  // smaller; weight = rint(e * factor). The weights' padding up to a multiple of kLanes becomes 0, total[row] is their
  // exact sum. scale is not negative; where scale * kLog2E is not finite all weights are 0. The scores and their padding
  // are overwritten.
  void (*softmax_s16)(std::int32_t* scores, std::int64_t stride, std::int64_t rows, std::int64_t n, float scale,
                      std::int16_t* weights, std::int64_t weights_stride, std::int32_t* total);

  // Sums of one panel of k / 4 groups; k is a multiple of 4 * depth and at most 2^20, depth at most kMaxDepth.
  void (*panel_sums)(const std::int8_t* panel, std::int64_t k, int depth, PanelSums& sums);

  // The sum of n numbers; n is a multiple of 16 and at most 2^23.
  std::int32_t (*sum_s8)(const std::int8_t* x, std::int64_t n);
};

}  // namespace agnews_fast
