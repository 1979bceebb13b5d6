#include "model/tensor_table.h"

#include <bit>
#include <cstdint>
#include <utility>

#include "model/error.h"

namespace agnews_fast {
namespace {

std::string describe(const std::string& dtype, const std::vector<std::int64_t>& shape) {
  std::string text = dtype + " (";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + ")";
}

}  // namespace

TensorTable::TensorTable(const std::byte* bytes, std::size_t size, std::map<std::string, TensorInfo> tensors)
    : bytes_(bytes), size_(size), tensors_(std::move(tensors)) {}

const TensorInfo& TensorTable::info(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) throw ModelError("tensor '" + name + "' is missing");
  return found->second;
}

std::int64_t TensorTable::length(const std::string& name) const {
  const TensorInfo& tensor = info(name);
  if (tensor.shape.size() != 1) {
    throw ModelError("tensor '" + name + "': expected one dimension, got " + describe(tensor.dtype, tensor.shape));
  }
  return tensor.shape[0];
}

const std::byte* TensorTable::checked(const std::string& name, const char* dtype, std::size_t element_size,
                                      const std::vector<std::int64_t>& shape) {
  const TensorInfo& tensor = info(name);
  if (tensor.dtype != dtype || tensor.shape != shape) {
    throw ModelError("tensor '" + name + "': expected " + describe(dtype, shape) + ", got " +
                     describe(tensor.dtype, tensor.shape));
  }
  std::uint64_t bytes = element_size;
  for (const std::int64_t n : shape) {
    // The shape equals one computed from the checked configuration, so the product is far from overflowing.
    bytes *= static_cast<std::uint64_t>(n);
  }
  if (tensor.begin > tensor.end || tensor.end > size_ || tensor.end - tensor.begin != bytes) {
    throw ModelError("tensor '" + name + "': expected " + std::to_string(bytes) + " bytes inside a file of " +
                     std::to_string(size_) + ", got bytes " + std::to_string(tensor.begin) + " to " +
                     std::to_string(tensor.end));
  }
  const std::byte* data = bytes_ + tensor.begin;
  if (reinterpret_cast<std::uintptr_t>(data) % kTensorAlignment != 0) {
    throw ModelError("tensor '" + name + "': expected an offset that is a multiple of " +
                     std::to_string(kTensorAlignment) + ", got " + std::to_string(tensor.begin));
  }
  used_.insert(name);
  return data;
}

const float* TensorTable::floats(const std::string& name, const std::vector<std::int64_t>& shape) {
  const float* data = reinterpret_cast<const float*>(checked(name, "F32", sizeof(float), shape));
  std::int64_t size = 1;
  for (const std::int64_t n : shape) size *= n;
  // All bits of the exponent are set where x is infinite or not a number. No branch, so that compilers vectorise it.
  constexpr std::uint32_t kExponent = 0x7f800000;
  std::uint32_t bad = 0;
  for (std::int64_t i = 0; i < size; ++i) bad |= (std::bit_cast<std::uint32_t>(data[i]) & kExponent) == kExponent;
  if (bad != 0) throw ModelError("tensor '" + name + "' holds a value that is not finite");
  return data;
}

const std::int32_t* TensorTable::int32s(const std::string& name, const std::vector<std::int64_t>& shape) {
  return reinterpret_cast<const std::int32_t*>(checked(name, "I32", sizeof(std::int32_t), shape));
}

const std::int16_t* TensorTable::int16s(const std::string& name, const std::vector<std::int64_t>& shape) {
  return reinterpret_cast<const std::int16_t*>(checked(name, "I16", sizeof(std::int16_t), shape));
}

const std::int8_t* TensorTable::int8s(const std::string& name, const std::vector<std::int64_t>& shape) {
  return reinterpret_cast<const std::int8_t*>(checked(name, "I8", sizeof(std::int8_t), shape));
}

void TensorTable::expect_all_used() const {
  for (const auto& [name, tensor] : tensors_) {
    if (used_.count(name) == 0) throw ModelError("tensor '" + name + "' is not part of this model");
  }
}

}  // namespace agnews_fast
