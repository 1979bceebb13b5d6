#pragma once

#include <cstddef>

namespace agnews_fast {

// A file mapped read-only: its pages are shared by all processes that map it, and are read when first touched.
class MappedFile {
 public:
  // Maps an open file, which may be closed then. Throws std::system_error if it cannot be mapped.
  explicit MappedFile(int file);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace agnews_fast
