// Test data: arrays without slack, and random numbers that are the same on every machine.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>

#include "runtime/aligned_buffer.h"

namespace agnews_fast {

// Exactly `size` elements on a 64-byte boundary: AddressSanitizer sees the first byte touched past them.
template <typename T>
class Array {
 public:
  explicit Array(std::int64_t size, T fill = T()) : size_(size) {
    buffer_.grow(static_cast<std::size_t>(size));
    data_ = buffer_.data();
    std::fill_n(data_, size, fill);
  }
  T* data() { return data_; }
  const T* data() const { return data_; }
  T& operator[](std::int64_t i) { return data_[i]; }
  const T& operator[](std::int64_t i) const { return data_[i]; }
  std::int64_t size() const { return size_; }
  T* begin() { return data_; }
  T* end() { return data_ + size_; }
  const T* begin() const { return data_; }
  const T* end() const { return data_ + size_; }

 private:
  AlignedBuffer<T> buffer_;
  T* data_;
  std::int64_t size_;
};

// The standard's distributions differ between libraries; its generators do not.
class Random {
 public:
  explicit Random(std::uint64_t seed) : bits_(seed) {}
  std::int64_t integer(std::int64_t lowest, std::int64_t highest) {
    return lowest + static_cast<std::int64_t>(bits_() % static_cast<std::uint64_t>(highest - lowest + 1));
  }
  double uniform(double low, double high) {
    return low + (high - low) * (static_cast<double>(bits_() >> 11) * 0x1p-53);
  }
  // Near enough to the normal distribution: the sum of 12 uniform numbers, less 6.
  double normal() {
    double sum = -6.0;
    for (int i = 0; i < 12; ++i) sum += uniform(0.0, 1.0);
    return sum;
  }

 private:
  std::mt19937_64 bits_;
};

inline constexpr float kUntouched = 4321.0f;      // what fills arrays, to see what is written
inline constexpr double kUnitRoundoff = 0x1p-24;  // of float: half the gap between 1 and the next

}  // namespace agnews_fast
