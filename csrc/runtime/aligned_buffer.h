#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <new>

namespace agnews_fast {

// An array of trivial T on a 64-byte boundary, zeroed when it grows; contents are lost then.
template <typename T>
class AlignedBuffer {
 public:
  void grow(std::size_t size) {
    if (size <= size_) return;
    data_.reset();
    size_ = 0;
    data_.reset(static_cast<T*>(::operator new(size * sizeof(T), std::align_val_t{64})));
    std::memset(static_cast<void*>(data_.get()), 0, size * sizeof(T));
    size_ = size;
  }
  T* data() { return data_.get(); }
  std::size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(T* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  std::unique_ptr<T, Free> data_;
  std::size_t size_ = 0;
};

}  // namespace agnews_fast
