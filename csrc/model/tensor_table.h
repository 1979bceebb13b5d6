// The tensors of a model file by name: bytes in memory, described by the file's header, checked before use.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace agnews_fast {

inline constexpr std::size_t kTensorAlignment = 64;

struct TensorInfo {
  std::string dtype;                // as in safetensors: "I8", "I32", "F32"
  std::vector<std::int64_t> shape;  // elements
  std::uint64_t begin, end;         // bytes from the start of the file
};

class TensorTable {
 public:
  // `bytes` must outlive the table and everything taken from it.
  TensorTable(const std::byte* bytes, std::size_t size, std::map<std::string, TensorInfo> tensors);

  // The tensor's elements. Throws ModelError unless it is there with just this type and shape, aligned, inside the
  // file and, for floats, finite.
  const float* floats(const std::string& name, const std::vector<std::int64_t>& shape);
  const std::int32_t* int32s(const std::string& name, const std::vector<std::int64_t>& shape);
  const std::int16_t* int16s(const std::string& name, const std::vector<std::int64_t>& shape);
  const std::int8_t* int8s(const std::string& name, const std::vector<std::int64_t>& shape);

  // The length of a one-dimensional tensor whose size the caller cannot know.
  std::int64_t length(const std::string& name) const;

  // Throws ModelError if the file holds a tensor that nobody asked for.
  void expect_all_used() const;

 private:
  const TensorInfo& info(const std::string& name) const;
  const std::byte* checked(const std::string& name, const char* dtype, std::size_t element_size,
                           const std::vector<std::int64_t>& shape);

  const std::byte* bytes_;
  std::size_t size_;
  std::map<std::string, TensorInfo> tensors_;
  std::set<std::string> used_;
};

}  // namespace agnews_fast
