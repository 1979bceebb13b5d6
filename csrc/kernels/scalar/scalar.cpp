// The specification: the plainest code that computes what kernels.h says. Compiled for the baseline machine.
#include <cmath>
#include <cstring>

#include "kernels/kernels.h"
#include "kernels/polynomials.h"

namespace agnews_fast {
namespace {

std::int64_t round_up(std::int64_t n, std::int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

float lane_tree(float* lanes) {
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int j = 0; j < width; ++j) lanes[j] += lanes[j + width];
  }
  return lanes[0];
}

template <int N>
float horner(const float (&coefficients)[N], float x) {
  float sum = coefficients[0];
  for (int i = 1; i < N; ++i) sum = std::fma(sum, x, coefficients[i]);
  return sum;
}

float power_of_two(float n) {
  const std::uint32_t bits = static_cast<std::uint32_t>(static_cast<std::int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return power;
}

float exp_nonpositive(float x) {
  if (std::isnan(x)) return x;
  x = x > kExpLowest ? x : kExpLowest;
  const float n = std::nearbyint(x * kLog2E);
  float r = std::fma(n, -kLn2High, x);
  r = std::fma(n, -kLn2Low, r);
  return horner(kExp, r) * power_of_two(n);
}

float exp2_nonpositive(float t) {
  t = t > kExp2Lowest ? t : kExp2Lowest;
  const float n = std::nearbyint(t);
  return horner(kExp2, t - n) * power_of_two(n);
}

float gelu(float x) {
  float t = x < kGeluClamp ? x : kGeluClamp;
  t = t > -kGeluClamp ? t : -kGeluClamp;
  const float argument = std::fma(t * t, kGeluArgument, -1.0f);
  return x * std::fma(t, horner(kGelu, argument), 0.5f);
}

float activate(Activation activation, float x) {
  switch (activation) {
    case Activation::kGelu:
      return gelu(x);
    case Activation::kRelu:
      return x <= 0.0f ? 0.0f : x;
    case Activation::kNone:
      break;
  }
  return x;
}

// Rows and columns are laid out plainly, a block at a time, as 16-bit numbers: compilers turn the dot products into SIMD.
// The blocks are on the stack, since a thread of a team that ran out of memory would leave the others waiting.
constexpr std::int64_t kBlockRows = 16 * kRowTile, kBlockK = 1024;

// A row or column of which groups of 4 k are `stride` groups apart.
template <typename T>
struct Strided {
  const T* data;
  std::int64_t stride;

  T at(std::int64_t k) const { return data[k / kGroup * stride * kGroup + k % kGroup]; }
  void unpack(std::int64_t begin, std::int64_t end, std::int16_t* plain) const {
    for (std::int64_t k = begin; k < end; k += kGroup) {
      for (std::int64_t j = 0; j < kGroup; ++j) plain[k - begin + j] = data[k * stride + j];
    }
  }
};

Strided<std::uint8_t> row_of(const PackedRows& a, std::int64_t row) {
  const std::int64_t first = row / kRowTile * kRowTile;
  return {a.data + first * a.k + (row - first) * kGroup, a.rows - first < kRowTile ? a.rows - first : kRowTile};
}

// dot[row - first][column] of the rows and one panel.
void dot_products(const PackedRows& a, std::int64_t first, std::int64_t last, const std::int8_t* panel,
                  std::int32_t (*dot)[kPanel]) {
  std::int16_t columns[kPanel][kBlockK], activations[kBlockK];
  for (std::int64_t begin = 0; begin < a.k; begin += kBlockK) {
    const std::int64_t end = a.k - begin < kBlockK ? a.k : begin + kBlockK;
    for (int c = 0; c < kPanel; ++c) Strided<std::int8_t>{panel + c * kGroup, kPanel}.unpack(begin, end, columns[c]);
    for (std::int64_t row = first; row < last; ++row) {
      row_of(a, row).unpack(begin, end, activations);
      for (int c = 0; c < kPanel; ++c) {
        std::int32_t sum = begin == 0 ? 0 : dot[row - first][c];
        for (std::int64_t k = 0; k < end - begin; ++k) sum += activations[k] * columns[c][k];
        dot[row - first][c] = sum;
      }
    }
  }
}

// Of a row's wide channels and one column.
std::int32_t wide_product(const PackedRows& a, std::int64_t row, const PackedWeights& w, std::int64_t n) {
  const std::int64_t first = row / kRowTile * kRowTile, rows = a.rows - first < kRowTile ? a.rows - first : kRowTile;
  std::int32_t sum = 0;
  for (std::int64_t i = 0; i < w.wide; ++i) {
    sum += a.wide[first * w.wide + (i / 2 * rows + row - first) * 2 + i % 2] *
           w.wide_weight[((n / kPanel * w.wide + i) / 2 * kPanel + n % kPanel) * 2 + i % 2];
  }
  return sum;
}

void gemm(const PackedRows& a, const PackedWeights& w, std::int64_t panel_begin, std::int64_t panel_end,
          Activation activation, float* out, std::int64_t out_stride) {
  std::int32_t dot[kBlockRows][kPanel];
  for (std::int64_t panel = panel_begin; panel < panel_end; ++panel) {
    for (std::int64_t first = 0; first < a.rows; first += kBlockRows) {
      const std::int64_t last = a.rows - first < kBlockRows ? a.rows : first + kBlockRows;
      dot_products(a, first, last, w.data + panel * kPanel * w.k, dot);
      for (std::int64_t row = first; row < last; ++row) {
        std::int32_t* sums = dot[row - first];
        for (std::int32_t i = w.outlier_begin[panel]; i < w.outlier_begin[panel + 1]; ++i) {
          sums[w.outlier_column[i]] += row_of(a, row).at(w.outlier_k[i]) * w.outlier_value[i];
        }
        for (int c = 0; c < kPanel; ++c) {
          const std::int64_t n = panel * kPanel + c;
          const std::int32_t exact = sums[c] - a.zero_point[row] * w.column_sum[n] + wide_product(a, row, w, n);
          const float y = std::fma(static_cast<float>(exact), a.scale[row] * w.scale[n], w.bias[n]);
          out[row * out_stride + n] = activate(activation, y);
        }
      }
    }
  }
}

void quantize_tile(const float* x, std::int64_t stride, std::int64_t rows, const Quantization& q, std::uint8_t* tile,
                   std::int16_t* wide, float* scale, std::int32_t* zero_point, float* /*window_norm*/) {
  const auto slot = [&](std::int64_t row, std::int64_t k) -> std::uint8_t& {
    return tile[k / kGroup * rows * kGroup + row * kGroup + k % kGroup];
  };
  for (std::int64_t row = 0; row < rows; ++row) {
    const float* values = x + row * stride;
    float lo = 0.0f, hi = 0.0f;
    bool finite = true;
    for (std::int64_t c = 0; c < q.columns; ++c) {
      const float v = values[c] * q.inverse_divisor[c];
      lo = v < lo ? v : lo;
      hi = v > hi ? v : hi;
      finite = finite && std::isfinite(v);
    }
    const float levels = static_cast<float>(q.levels);
    const float range = finite ? hi - lo : NAN;
    const bool usable = range >= kSmallestRange && range <= kLargestRange;
    const float inverse = usable ? levels / range : 0.0f;
    const float zero = usable ? std::nearbyint(-lo * inverse) : 0.0f;
    scale[row] = usable ? range / levels : range <= kLargestRange ? 0.0f : NAN;
    zero_point[row] = static_cast<std::int32_t>(zero);
    for (std::int64_t c = 0; c < q.columns; ++c) {
      const float level = std::nearbyint(std::fma(values[c] * q.inverse_divisor[c], inverse, zero));
      // A NaN compares false and becomes 0, as it does in the SIMD kernels.
      slot(row, c) = static_cast<std::uint8_t>(level > 0.0f ? (level < levels ? level : levels) : 0.0f);
    }
    for (std::int64_t k = q.columns; k < q.k; ++k) slot(row, k) = 0;
    for (std::int64_t i = 0; i < q.wide; ++i) {
      const float v = values[q.wide_channel[i]] * q.inverse_divisor[q.wide_channel[i]];
      wide[(i / 2 * rows + row) * 2 + i % 2] =
          static_cast<std::int16_t>(usable ? std::nearbyint(v * inverse * kWideSteps) : 0.0f);
    }
  }
}

void layer_norm_row(const float* x, const float* residual, std::int64_t columns, const float* gamma, const float* beta,
                    float epsilon, float* out, float* rstd_out) {
  const auto value = [&](std::int64_t c) { return residual ? x[c] + residual[c] : x[c]; };
  float sum[kLanes] = {}, squares[kLanes] = {};
  for (std::int64_t c = 0; c < columns; ++c) sum[c % kLanes] += value(c);
  const float count = static_cast<float>(columns);
  const float mean = lane_tree(sum) / count;
  for (std::int64_t c = 0; c < columns; ++c) {
    const float d = value(c) - mean;
    squares[c % kLanes] = std::fma(d, d, squares[c % kLanes]);
  }
  const float rstd = 1.0f / std::sqrt(lane_tree(squares) / count + epsilon);
  if (rstd_out) *rstd_out = rstd;
  for (std::int64_t c = 0; c < columns; ++c) out[c] = std::fma((value(c) - mean) * rstd, gamma[c], beta[c]);
  for (std::int64_t c = columns; c < round_up(columns, kLanes); ++c) out[c] = 0.0f;
}

void layer_norm(const float* x, const float* residual, std::int64_t stride, std::int64_t rows, std::int64_t columns,
                const float* gamma, const float* beta, float epsilon, float* out, float* rstds) {
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t at = row * stride;
    layer_norm_row(x + at, residual ? residual + at : nullptr, columns, gamma, beta, epsilon, out + at,
                   rstds ? rstds + row : nullptr);
  }
}

void embed(const std::int8_t* word, float word_scale, const float* position, std::int64_t columns, float* out) {
  for (std::int64_t c = 0; c < columns; ++c) out[c] = std::fma(static_cast<float>(word[c]), word_scale, position[c]);
}

void project_embedding(const std::int8_t* word, float word_scale, const std::int8_t* position, float position_scale,
                       float rstd, const float* bias, std::int64_t columns, float* out) {
  for (std::int64_t c = 0; c < columns; ++c) {
    const float sum =
        std::fma(static_cast<float>(word[c]), word_scale, static_cast<float>(position[c]) * position_scale);
    out[c] = std::fma(sum, rstd, bias[c]);
  }
}

float softmax_row(float* scores, std::int64_t n) {
  float highest = scores[0];
  for (std::int64_t i = 1; i < n; ++i) highest = scores[i] > highest ? scores[i] : highest;
  float sum[kLanes] = {};
  for (std::int64_t i = 0; i < n; ++i) {
    scores[i] = exp_nonpositive(scores[i] - highest);
    sum[i % kLanes] += scores[i];
  }
  for (std::int64_t i = n; i < round_up(n, kLanes); ++i) scores[i] = 0.0f;
  return 1.0f / lane_tree(sum);
}

void softmax(float* scores, std::int64_t stride, std::int64_t rows, std::int64_t n, float* inverse_sum) {
  for (std::int64_t row = 0; row < rows; ++row) inverse_sum[row] = softmax_row(scores + row * stride, n);
}

void transpose(const float* x, std::int64_t stride, std::int64_t rows, std::int64_t columns, float* out,
               std::int64_t out_stride) {
  for (std::int64_t c = 0; c < columns; ++c) {
    for (std::int64_t r = 0; r < rows; ++r) out[c * out_stride + r] = x[r * stride + c];
    for (std::int64_t r = rows; r < round_up(rows, kLanes); ++r) out[c * out_stride + r] = 0.0f;
  }
}

void gemm_f32(const float* a, std::int64_t a_stride, const float* b, std::int64_t b_stride, std::int64_t b_panel_stride,
              std::int64_t m, std::int64_t n, std::int64_t k, const float* scale, const float* bias, float* c,
              std::int64_t c_stride) {
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < n; ++j) {
      const float* column = b + j / kLanes * b_panel_stride + j % kLanes;
      float sum = bias ? bias[j] : 0.0f;
      for (std::int64_t p = 0; p < k; ++p) sum = std::fma(a[i * a_stride + p], column[p * b_stride], sum);
      c[i * c_stride + j] = scale ? scale[i] * sum : sum;
    }
  }
}

// Where (k, n) lies in a right operand.
std::int64_t right_at(std::int64_t k, std::int64_t n, std::int64_t all_k) {
  return (n / kPanel * (round_up(all_k, 2) / 2) + k / 2) * (2 * kPanel) + n % kPanel * 2 + k % 2;
}

float quantize_s16(const float* x, std::int64_t stride, std::int64_t rows, std::int64_t columns, int levels,
                   Operand16 operand, std::int16_t* out) {
  float largest = 0.0f;
  bool finite = true;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < columns; ++c) {
      const float magnitude = std::fabs(x[r * stride + c]);
      finite = finite && magnitude <= kLargestRange;
      largest = magnitude > largest ? magnitude : largest;
    }
  }
  const bool usable = finite && largest >= kSmallestRange;
  const float inverse = usable ? static_cast<float>(levels) / largest : 0.0f;
  const auto value = [&](std::int64_t r, std::int64_t c) {
    return static_cast<std::int16_t>(usable && r < rows ? std::nearbyint(x[r * stride + c] * inverse) : 0.0f);
  };
  const std::int64_t padded_rows = operand == Operand16::kLeft    ? rows
                                   : operand == Operand16::kRight ? round_up(rows, 2)
                                                                  : round_up(rows, kPanel);
  for (std::int64_t r = 0; r < padded_rows; ++r) {
    for (std::int64_t c = 0; c < columns; ++c) {
      const std::int64_t at = operand == Operand16::kLeft    ? r * columns + c
                              : operand == Operand16::kRight ? right_at(r, c, rows)
                                                             : right_at(c, r, columns);
      out[at] = value(r, c);
    }
  }
  return finite ? (usable ? largest / static_cast<float>(levels) : 0.0f) : NAN;
}

std::int32_t dot_s16(const std::int16_t* row, const std::int16_t* b, std::int64_t column, std::int64_t k) {
  std::int32_t sum = 0;
  for (std::int64_t p = 0; p < k; ++p) sum += row[p] * b[right_at(p, column, k)];
  return sum;
}

void gemm_s16s32(const std::int16_t* a, std::int64_t a_stride, const std::int16_t* b, std::int64_t m, std::int64_t n,
                 std::int64_t k, std::int32_t* c, std::int64_t c_stride) {
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < n; ++j) c[i * c_stride + j] = dot_s16(a + i * a_stride, b, j, k);
  }
}

void gemm_s16f32(const std::int16_t* a, std::int64_t a_stride, const std::int16_t* b, std::int64_t m, std::int64_t n,
                 std::int64_t k, const float* scale, float* c, std::int64_t c_stride) {
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < n; ++j) {
      c[i * c_stride + j] = static_cast<float>(dot_s16(a + i * a_stride, b, j, k)) * scale[i];
    }
  }
}

std::int32_t softmax_s16_row(const std::int32_t* scores, std::int64_t n, float scale, std::int16_t* weights) {
  std::int32_t highest = scores[0];
  for (std::int64_t i = 1; i < n; ++i) highest = scores[i] > highest ? scores[i] : highest;
  const float base = scale * kLog2E;
  const auto e = [&](std::int64_t i) { return exp2_nonpositive(static_cast<float>(scores[i] - highest) * base); };
  float sum[kLanes] = {};
  for (std::int64_t i = 0; i < n; ++i) sum[i % kLanes] += e(i);
  const float wanted = kWeightSum / lane_tree(sum);
  const float factor = wanted < kLargestWeight ? wanted : kLargestWeight;
  std::int32_t total = 0;
  for (std::int64_t i = 0; i < round_up(n, kLanes); ++i) {
    weights[i] = static_cast<std::int16_t>(i < n ? std::nearbyint(e(i) * factor) : 0.0f);
    total += weights[i];
  }
  return total;
}

void softmax_s16(std::int32_t* scores, std::int64_t stride, std::int64_t rows, std::int64_t n, float scale,
                 std::int16_t* weights, std::int64_t weights_stride, std::int32_t* total) {
  for (std::int64_t row = 0; row < rows; ++row) {
    total[row] = softmax_s16_row(scores + row * stride, n, scale, weights + row * weights_stride);
  }
}

void panel_sums(const std::int8_t* panel, std::int64_t k, int depth, PanelSums& sums) {
  sums = {};
  constexpr int kWidth = kPanel * kGroup;
  for (std::int64_t group = 0; group < k / kGroup; group += depth) {
    std::int32_t positive[kWidth / 2] = {}, negative[kWidth / 2] = {};  // of this window, by lane
    for (std::int64_t i = 0; i < depth * kWidth; ++i) {
      const std::int32_t w = panel[group * kWidth + i];
      sums.sum[i % kWidth / kGroup] += w;
      sums.magnitude[i % kWidth / kGroup] += w < 0 ? -w : w;
      std::int32_t* lanes = w < 0 ? negative : positive;
      lanes[i % kWidth / 2] += w < 0 ? -w : w;
      sums.lowest = w < sums.lowest ? w : sums.lowest;
    }
    for (int lane = 0; lane < kWidth / 2; ++lane) {
      const std::int32_t most = positive[lane] > negative[lane] ? positive[lane] : negative[lane];
      sums.largest_window = most > sums.largest_window ? most : sums.largest_window;
    }
  }
}

std::int32_t sum_s8(const std::int8_t* x, std::int64_t n) {
  std::int32_t sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += x[i];
  return sum;
}

}  // namespace

extern const Kernels kScalarKernels;
const Kernels kScalarKernels = {
    "scalar",    [] { return true; }, gemm,        nullptr,    quantize_tile, layer_norm,
    embed,       project_embedding,   softmax,     transpose,  gemm_f32,      quantize_s16,
    gemm_s16s32, gemm_s16f32,         softmax_s16, panel_sums, sum_s8,
};

}  // namespace agnews_fast
