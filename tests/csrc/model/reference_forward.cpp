#include "model/reference_forward.h"

#include <algorithm>
#include <cmath>

#include "kernels/polynomials.h"

namespace agnews_fast {
namespace {

// With the polynomial of the kernels, exactly evaluated: it is compared with erf in kernels/gemm.cpp. What it is off by
// would round too many values to another level here to see anything else.
double gelu(double x) {
  const double t = std::clamp<double>(x, -kGeluClamp, kGeluClamp);
  double sum = 0.0;
  for (const float coefficient : kGelu) sum = sum * (t * t * kGeluArgument - 1.0) + coefficient;
  return x * (0.5 + t * sum);
}

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
    const double steps = linear.wide[i] ? std::nearbyint(v[i] / scale * kWideSteps) / kWideSteps : level - zero_point;
    v[i] = steps * scale / linear.inverse_divisor[i];
  }
  return v;
}

// All of a matrix to -levels..levels times one scale.
void quantize_symmetric(Matrix& x, int levels) {
  double largest = 0.0;
  for (const Vector& row : x) {
    for (const double value : row) largest = std::max(largest, std::fabs(value));
  }
  const double scale = largest / levels;
  for (Vector& row : x) {
    for (double& value : row) value = largest < kSmallestRange ? 0.0 : std::nearbyint(value / scale) * scale;
  }
}

Vector multiply(const Vector& x, const Vector& weight, const Vector& bias) {
  Vector y = bias;
  for (std::size_t o = 0; o < y.size(); ++o) {
    const double* row = weight.data() + o * x.size();
    for (std::size_t i = 0; i < x.size(); ++i) y[o] += x[i] * row[i];
  }
  return y;
}

double average(const Vector& x) {
  double mean = 0.0;
  for (const double value : x) mean += value / static_cast<double>(x.size());
  return mean;
}

double standard_deviation(const Vector& x, double epsilon) {
  const double mean = average(x);
  double variance = 0.0;
  for (const double value : x) variance += (value - mean) * (value - mean) / static_cast<double>(x.size());
  return std::sqrt(variance + epsilon);
}

Vector normalize(const Vector& x, const PlainNorm& norm, double epsilon) {
  const double mean = average(x), deviation = standard_deviation(x, epsilon);
  Vector y(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) y[i] = (x[i] - mean) / deviation * norm.gamma[i] + norm.beta[i];
  return y;
}

class Pass {
 public:
  Pass(const PlainModel& model, bool quantized) : model_(model), config_(model.config), quantized_(quantized) {}

  Reference run(const std::int32_t* ids, std::int64_t tokens) {
    Matrix x, embeddings;
    const auto hidden = static_cast<std::size_t>(config_.hidden);
    for (std::int64_t t = 0; t < tokens; ++t) {
      Vector row(hidden);
      for (std::size_t c = 0; c < hidden; ++c) {
        row[c] = model_.word[static_cast<std::size_t>(ids[t]) * hidden + c] +
                 model_.position[static_cast<std::size_t>(t) * hidden + c];
      }
      x.push_back(normalize(row, model_.embedding_norm, config_.layer_norm_epsilon));
      embeddings.push_back(row);
    }
    for (const PlainLayer& layer : model_.layers) {
      const bool last = &layer == &model_.layers.back();
      const Matrix context = last                               ? last_attention(layer, x)
                             : &layer == &model_.layers.front() ? attention(first_qkv(layer.qkv, x, embeddings, ids))
                                                                : attention(linear(x, layer.qkv));
      x = after_attention(layer, x, context);
    }
    Vector pooled = multiply(x[0], model_.pre_classifier, model_.pre_classifier_bias);
    for (double& value : pooled) value = std::max(value, 0.0);
    reference_.logits = multiply(pooled, model_.classifier, model_.classifier_bias);
    reference_.first_token = x[0];
    return reference_;
  }

 private:
  Vector input(const Vector& x, const PlainLinear& linear) const {
    return quantized_ ? quantize(x, linear, config_.levels) : x;
  }

  void record(const Matrix& x) { record(x, x[0].size()); }

  void record(const Matrix& x, std::size_t inputs) {
    Vector most(inputs, 0.0);
    for (const Vector& row : x) {
      for (std::size_t i = 0; i < most.size(); ++i) most[i] = std::max(most[i], std::fabs(row[i]));
    }
    reference_.maxima.push_back(most);
  }

  Matrix linear(const Matrix& x, const PlainLinear& linear) {
    record(x);
    Matrix y;
    for (const Vector& row : x) y.push_back(multiply(input(row, linear), linear.weight, linear.bias));
    return y;
  }

  // Of the first layer: the words that first_projection has never meet the matrix.
  Matrix first_qkv(const PlainLinear& qkv, const Matrix& x, const Matrix& embeddings, const std::int32_t* ids) {
    const PlainProjection& known = model_.first_projection;
    Matrix computed, y;
    for (std::size_t t = 0; t < x.size(); ++t) {
      const Vector& word = known.words[static_cast<std::size_t>(ids[t])];
      if (word.empty()) computed.push_back(x[t]);
      if (word.empty() || !quantized_) {
        y.push_back(multiply(input(x[t], qkv), qkv.weight, qkv.bias));
        continue;
      }
      const double deviation = standard_deviation(embeddings[t], config_.layer_norm_epsilon);
      Vector row = known.bias;
      for (std::size_t o = 0; o < row.size(); ++o) row[o] += (word[o] + known.positions[t][o]) / deviation;
      y.push_back(row);
    }
    record(computed, x[0].size());
    return y;
  }

  // Row h of x by part h of the outputs of a Linear.
  Matrix linear_by_head(const Matrix& x, const PlainLinear& linear) {
    record(x);
    Matrix y;
    const std::size_t outputs = linear.bias.size() / x.size();
    for (std::size_t head = 0; head < x.size(); ++head) {
      y.push_back(slice(multiply(input(x[head], linear), linear.weight, linear.bias), head, outputs));
    }
    return y;
  }

  static Vector slice(const Vector& x, std::size_t part, std::size_t width) {
    const auto begin = x.begin() + static_cast<std::ptrdiff_t>(part * width);
    return {begin, begin + static_cast<std::ptrdiff_t>(width)};
  }

  // One head of a row of queries, divided by the root of its size.
  Vector scaled_query(const Vector& row, std::size_t head) const {
    const auto head_size = static_cast<std::size_t>(config_.hidden / config_.heads);
    Vector query = slice(row, head, head_size);
    for (double& value : query) value /= std::sqrt(static_cast<double>(head_size));
    return query;
  }

  // softmax(query . keys) of one head's query, and the mean of the values that it gives. integers: with weights rounded
  // as softmax_s16 does.
  static Vector attend(const Vector& query, const Matrix& keys, const Matrix& values, bool integers) {
    Vector weights, mean(values[0].size(), 0.0);
    for (const Vector& key : keys) {
      double score = 0.0;
      for (std::size_t d = 0; d < key.size(); ++d) score += query[d] * key[d];
      weights.push_back(score);
    }
    const double highest = *std::max_element(weights.begin(), weights.end());
    double sum = 0.0;
    for (double& weight : weights) sum += weight = std::exp(weight - highest);
    if (integers) {
      const double factor = std::min<double>(kLargestWeight, kWeightSum / sum);
      sum = 0.0;
      for (double& weight : weights) sum += weight = std::nearbyint(weight * factor);
    }
    for (std::size_t j = 0; j < values.size(); ++j) {
      for (std::size_t d = 0; d < mean.size(); ++d) mean[d] += weights[j] / sum * values[j][d];
    }
    return mean;
  }

  // qkv: (tokens, 3 x hidden)
  Matrix attention(const Matrix& qkv) {
    const auto heads = static_cast<std::size_t>(config_.heads);
    const auto head_size = static_cast<std::size_t>(config_.hidden) / heads;
    Matrix context(qkv.size());
    for (std::size_t head = 0; head < heads; ++head) {
      Matrix queries, keys, values;
      for (const Vector& row : qkv) {
        queries.push_back(scaled_query(row, head));
        keys.push_back(slice(row, heads + head, head_size));
        values.push_back(slice(row, 2 * heads + head, head_size));
      }
      if (quantized_) {
        quantize_symmetric(queries, config_.score_levels());
        quantize_symmetric(keys, config_.score_levels());
        quantize_symmetric(values, kValueLevels);
      }
      for (std::size_t i = 0; i < qkv.size(); ++i) {
        const Vector mean = attend(queries[i], keys, values, quantized_);
        context[i].insert(context[i].end(), mean.begin(), mean.end());
      }
    }
    return context;
  }

  // Of the first token: its queries are brought to the tokens, as the core does, and attend in float.
  Matrix last_attention(const PlainLayer& layer, const Matrix& x) {
    const auto heads = static_cast<std::size_t>(config_.heads);
    const Vector query = linear({x[0]}, layer.query)[0];
    Matrix queries, means;
    for (std::size_t head = 0; head < heads; ++head) queries.push_back(scaled_query(query, head));
    for (const Vector& wanted : linear_by_head(queries, layer.key)) means.push_back(attend(wanted, x, x, false));
    Vector context;
    for (const Vector& part : linear_by_head(means, layer.value))
      context.insert(context.end(), part.begin(), part.end());
    return {context};
  }

  Matrix after_attention(const PlainLayer& layer, const Matrix& all, const Matrix& context) {
    const Matrix x(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(context.size()));
    const Matrix middle = add_norm(x, linear(context, layer.out), layer.attention_norm);
    Matrix inner = linear(middle, layer.ffn1);
    for (Vector& row : inner) {
      for (double& value : row) {
        value = config_.activation == Activation::kRelu ? std::max(value, 0.0) : gelu(value);
      }
    }
    return add_norm(middle, linear(inner, layer.ffn2), layer.output_norm);
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
