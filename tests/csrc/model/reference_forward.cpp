#include "model/reference_forward.h"

#include <algorithm>
#include <cmath>

namespace agnews_fast {
namespace {

using Vector = std::vector<double>;
using Matrix = std::vector<Vector>;  // rows

Vector quantize(const Vector& x, const PlainLinear& linear, int levels) {
  const std::size_t size = x.size();
  Vector v(size);
  double lo = 0.0, hi = 0.0;
  for (std::size_t i = 0; i < size; ++i) {
    v[i] = x[i] * linear.inverse_divisor[i];
    lo = std::min(lo, v[i]);
    hi = std::max(hi, v[i]);
  }
  if (hi - lo < kSmallestRange) return Vector(size, 0.0);
  const double scale = (hi - lo) / levels, zero_point = std::nearbyint(-lo / scale);
  for (std::size_t i = 0; i < size; ++i) {
    const double level = std::clamp(std::nearbyint(v[i] / scale + zero_point), 0.0, static_cast<double>(levels));
    v[i] = (level - zero_point) * scale * linear.slots[i];
  }
  return v;
}

Vector multiply(const Vector& x, const Vector& weight, const Vector& bias) {
  Vector y = bias;
  for (std::size_t o = 0; o < y.size(); ++o) {
    const double* row = weight.data() + o * x.size();
    for (std::size_t i = 0; i < x.size(); ++i) y[o] += x[i] * row[i];
  }
  return y;
}

Vector normalize(const Vector& x, const PlainNorm& norm, double epsilon) {
  const auto count = static_cast<double>(x.size());
  double mean = 0.0, variance = 0.0;
  for (const double value : x) mean += value / count;
  for (const double value : x) variance += (value - mean) * (value - mean) / count;
  Vector y(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    y[i] = (x[i] - mean) / std::sqrt(variance + epsilon) * norm.gamma[i] + norm.beta[i];
  }
  return y;
}

class Pass {
 public:
  Pass(const PlainModel& model, bool quantized) : model_(model), config_(model.config), quantized_(quantized) {}

  Reference run(const std::int32_t* ids, std::int64_t tokens) {
    Matrix x;
    const auto hidden = static_cast<std::size_t>(config_.hidden);
    for (std::int64_t t = 0; t < tokens; ++t) {
      Vector row(hidden);
      for (std::size_t c = 0; c < hidden; ++c) {
        row[c] = model_.word[static_cast<std::size_t>(ids[t]) * hidden + c] +
                 model_.position[static_cast<std::size_t>(t) * hidden + c];
      }
      x.push_back(normalize(row, model_.embedding_norm, config_.layer_norm_epsilon));
    }
    for (const PlainLayer& layer : model_.layers) x = encode(layer, x, &layer == &model_.layers.back());
    Vector pooled = multiply(x[0], model_.pre_classifier, model_.pre_classifier_bias);
    for (double& value : pooled) value = std::max(value, 0.0);
    reference_.logits = multiply(pooled, model_.classifier, model_.classifier_bias);
    reference_.first_token = x[0];
    return reference_;
  }

 private:
  // record: how many rows count for the maxima.
  Matrix linear(const Matrix& x, const PlainLinear& linear, std::size_t record) {
    Vector most(x[0].size(), 0.0);
    Matrix y;
    for (std::size_t row = 0; row < x.size(); ++row) {
      for (std::size_t i = 0; i < most.size() && row < record; ++i) most[i] = std::max(most[i], std::fabs(x[row][i]));
      y.push_back(multiply(quantized_ ? quantize(x[row], linear, config_.levels) : x[row], linear.weight, linear.bias));
    }
    reference_.maxima.push_back(most);
    return y;
  }

  Matrix encode(const PlainLayer& layer, const Matrix& x, bool last) {
    const std::size_t tokens = x.size(), record = last ? 1 : tokens, hidden = x[0].size();
    const std::size_t heads = static_cast<std::size_t>(config_.heads), head_size = hidden / heads;
    const Matrix qkv = linear(x, layer.qkv, tokens);
    Matrix context(tokens, Vector(hidden, 0.0));
    for (std::size_t head = 0; head < heads; ++head) {
      const std::size_t q = head * head_size, k = hidden + q, v = 2 * hidden + q;
      for (std::size_t i = 0; i < tokens; ++i) {
        Vector weights(tokens);
        double sum = 0.0;
        for (std::size_t j = 0; j < tokens; ++j) {
          double score = 0.0;
          for (std::size_t d = 0; d < head_size; ++d) score += qkv[i][q + d] * qkv[j][k + d];
          sum += weights[j] = std::exp(score / std::sqrt(static_cast<double>(head_size)));
        }
        for (std::size_t j = 0; j < tokens; ++j) {
          for (std::size_t d = 0; d < head_size; ++d) context[i][q + d] += weights[j] / sum * qkv[j][v + d];
        }
      }
    }
    const Matrix middle = add_norm(x, linear(context, layer.out, record), layer.attention_norm);
    Matrix inner = linear(middle, layer.ffn1, record);
    for (Vector& row : inner) {
      for (double& value : row) {
        value = config_.activation == Activation::kRelu ? std::max(value, 0.0)
                                                        : 0.5 * value * std::erfc(-value / std::sqrt(2.0));
      }
    }
    return add_norm(middle, linear(inner, layer.ffn2, record), layer.output_norm);
  }

  Matrix add_norm(const Matrix& x, const Matrix& y, const PlainNorm& norm) const {
    Matrix sums = x;
    for (std::size_t row = 0; row < x.size(); ++row) {
      for (std::size_t c = 0; c < x[row].size(); ++c) sums[row][c] += y[row][c];
      sums[row] = normalize(sums[row], norm, config_.layer_norm_epsilon);
    }
    return sums;
  }

  const PlainModel& model_;
  const Config& config_;
  const bool quantized_;
  Reference reference_;
};

}  // namespace

Reference reference_forward(const PlainModel& model, const std::int32_t* ids, std::int64_t tokens, bool quantized) {
  return Pass(model, quantized).run(ids, tokens);
}

}  // namespace agnews_fast
