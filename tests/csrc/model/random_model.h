// Random models of any size: in the layout of a model file, and in plain form for an independent forward pass.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "arrays.h"
#include "kernels/registry.h"
#include "model/model.h"
#include "model/tensor_table.h"

namespace agnews_fast {

struct PlainNorm {
  std::vector<double> gamma, beta;
};

// What a Linear computes, in the sizes of the configuration: nothing is padded or packed, and no outlier apart.
struct PlainLinear {
  std::int64_t inputs, outputs;
  std::vector<double> weight;           // (outputs, inputs), dequantised
  std::vector<double> bias;             // (outputs)
  std::vector<double> inverse_divisor;  // (inputs): what a channel is multiplied by before it is quantised,
  std::vector<bool> wide;               // (inputs): and whether it is quantised in finer steps
};

struct PlainLayer {
  PlainLinear qkv;  // not in the last layer: q, k and v one after the other, head by head; q is not scaled
  PlainLinear query, key, value;  // in the last layer; key: head -> hidden for each head
  PlainLinear out, ffn1, ffn2;
  PlainNorm attention_norm, output_norm;
};

// What first_projection holds, dequantised; q is not scaled.
struct PlainProjection {
  std::vector<std::vector<double>> words;      // (vocabulary, 3 x hidden); what is not there is empty
  std::vector<std::vector<double>> positions;  // (positions, 3 x hidden)
  std::vector<double> bias;                    // (3 x hidden)
};

struct PlainModel {
  Config config;
  std::vector<double> word, position;  // (vocabulary, hidden), (positions, hidden)
  PlainNorm embedding_norm;
  PlainProjection first_projection;  // of more layers than one
  std::vector<PlainLayer> layers;
  std::vector<double> pre_classifier, pre_classifier_bias;  // (hidden, hidden): [out][in]
  std::vector<double> classifier, classifier_bias;          // (labels, hidden): [out][in]
};

class RandomModel {
 public:
  // Weights have outliers and wide channels; everything is valid for the configuration. projected: the share of
  // the words that the first projection has.
  RandomModel(const Config& config, std::uint64_t seed, double projected = 0.6);

  TensorTable table() const { return TensorTable(bytes.data(), static_cast<std::size_t>(bytes.size()), tensors); }
  Model load(const Kernels& kernels = select_kernels("")) const {
    TensorTable all = table();
    return Model(plain.config, all, kernels);
  }
  template <typename T>
  T* data(const std::string& name) {
    return reinterpret_cast<T*>(bytes.data() + tensors.at(name).begin);
  }
  // Makes AddressSanitizer report what reads the bytes between two tensors.
  void forbid_gaps();

  PlainModel plain;
  std::map<std::string, TensorInfo> tensors;
  Array<std::byte> bytes{0};
};

// Sizes that differ in every way: two usual ones, one of odd numbers only, the smallest there is.
std::vector<Config> test_configs();

// Token ids for texts of these lengths, and the offsets between them.
struct Texts {
  Texts(const Config& config, const std::vector<std::int64_t>& lengths, std::uint64_t seed);
  std::vector<std::int32_t> ids;
  std::vector<std::int64_t> offsets;
};

}  // namespace agnews_fast
