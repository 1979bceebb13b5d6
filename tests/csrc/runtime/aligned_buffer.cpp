#include "runtime/aligned_buffer.h"

#include <cstdint>

#include "check.h"

namespace agnews_fast {
namespace {

TEST(a_new_buffer_is_empty) {
  AlignedBuffer<float> buffer;
  CHECK_EQ(buffer.size(), 0u);
  CHECK(buffer.data() == nullptr);
  buffer.grow(0);
  CHECK(buffer.data() == nullptr);
}

TEST(a_buffer_is_aligned_and_zeroed) {
  for (const std::size_t size : {1u, 3u, 16u, 17u, 1000u, 100001u}) {
    AlignedBuffer<std::int32_t> buffer;
    buffer.grow(size);
    CHECK_EQ(buffer.size(), size);
    CHECK_EQ(reinterpret_cast<std::uintptr_t>(buffer.data()) % 64, 0u);
    for (std::size_t i = 0; i < size; ++i) CHECK_EQ(buffer.data()[i], 0);
  }
}

TEST(a_buffer_only_grows_and_is_zeroed_again_then) {
  AlignedBuffer<std::uint8_t> buffer;
  buffer.grow(100);
  std::uint8_t* data = buffer.data();
  for (int i = 0; i < 100; ++i) data[i] = 7;
  buffer.grow(99);
  buffer.grow(100);
  CHECK(buffer.data() == data);
  CHECK_EQ(buffer.size(), 100u);
  CHECK_EQ(data[99], 7);
  buffer.grow(101);
  CHECK_EQ(buffer.size(), 101u);
  for (int i = 0; i < 101; ++i) CHECK_EQ(buffer.data()[i], 0);
}

}  // namespace
}  // namespace agnews_fast
