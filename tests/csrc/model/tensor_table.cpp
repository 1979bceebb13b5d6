#include "model/tensor_table.h"

#include <cmath>

#include "arrays.h"
#include "check.h"
#include "model/error.h"

namespace agnews_fast {
namespace {

// A file of 256 bytes; tensors: "f" F32 (2, 3) at 64, "i" I32 (4) at 128, "b" I8 (64) at 192, to the end.
struct File {
  TensorTable table() const { return TensorTable(reinterpret_cast<const std::byte*>(bytes.data()), size, tensors); }
  template <typename T>
  T* at(std::int64_t offset) {
    return reinterpret_cast<T*>(bytes.data() + offset);
  }

  Array<std::uint8_t> bytes{256};
  std::size_t size = 256;
  std::map<std::string, TensorInfo> tensors = {
      {"f", {"F32", {2, 3}, 64, 88}},
      {"i", {"I32", {4}, 128, 144}},
      {"b", {"I8", {64}, 192, 256}},
  };
};

TEST(tensors_are_views_into_the_file) {
  File file;
  TensorTable table = file.table();
  CHECK_EQ(table.floats("f", {2, 3}), file.at<float>(64));
  CHECK_EQ(table.int32s("i", {4}), file.at<std::int32_t>(128));
  CHECK_EQ(table.int8s("b", {64}), file.at<std::int8_t>(192));
  CHECK_EQ(table.length("i"), 4);
  table.expect_all_used();
}

TEST(a_missing_tensor_is_named) {
  File file;
  CHECK_THROWS(file.table().floats("g", {1}), ModelError, "tensor 'g' is missing");
  CHECK_THROWS(file.table().length("g"), ModelError, "tensor 'g' is missing");
}

TEST(another_type_is_refused) {
  File file;
  CHECK_THROWS(file.table().int32s("f", {2, 3}), ModelError, "tensor 'f': expected I32 (2, 3), got F32 (2, 3)");
  CHECK_THROWS(file.table().floats("i", {4}), ModelError, "tensor 'i': expected F32 (4), got I32 (4)");
  CHECK_THROWS(file.table().int32s("b", {16}), ModelError, "tensor 'b': expected I32 (16), got I8 (64)");
}

TEST(another_shape_is_refused) {
  File file;
  CHECK_THROWS(file.table().floats("f", {3, 2}), ModelError, "expected F32 (3, 2), got F32 (2, 3)");
  CHECK_THROWS(file.table().floats("f", {6}), ModelError, "expected F32 (6), got F32 (2, 3)");
  CHECK_THROWS(file.table().floats("f", {2, 3, 1}), ModelError, "expected F32 (2, 3, 1)");
  CHECK_THROWS(file.table().length("f"), ModelError, "tensor 'f': expected one dimension, got F32 (2, 3)");
}

TEST(bytes_that_do_not_fit_the_shape_or_the_file_are_refused) {
  const auto take = [](std::uint64_t begin, std::uint64_t end, std::size_t size = 256) {
    File file;
    file.tensors["f"].begin = begin;
    file.tensors["f"].end = end;
    file.size = size;
    file.table().floats("f", {2, 3});
  };
  take(64, 88);
  take(64, 88, 88);
  CHECK_THROWS(take(64, 88, 87), ModelError, "tensor 'f': expected 24 bytes inside a file of 87, got bytes 64 to 88");
  CHECK_THROWS(take(64, 88, 0), ModelError, "inside a file of 0");
  CHECK_THROWS(take(64, 87), ModelError, "expected 24 bytes");
  CHECK_THROWS(take(64, 92), ModelError, "expected 24 bytes");
  CHECK_THROWS(take(88, 64), ModelError, "expected 24 bytes");
  CHECK_THROWS(take(256, 280), ModelError, "expected 24 bytes");
  // Offsets near 2^64, where begin + size would wrap around.
  CHECK_THROWS(take(UINT64_MAX - 23, UINT64_MAX), ModelError, "expected 24 bytes");
  CHECK_THROWS(take(UINT64_MAX - 7, 16), ModelError, "expected 24 bytes");
}

TEST(an_offset_off_the_alignment_is_refused) {
  for (const std::uint64_t begin : {4, 16, 32, 60, 65, 72}) {
    File file;
    file.tensors["f"] = {"F32", {2, 3}, begin, begin + 24};
    CHECK_THROWS(file.table().floats("f", {2, 3}), ModelError, "expected an offset that is a multiple of 64");
  }
}

TEST(values_that_are_not_finite_are_refused) {
  for (std::int64_t i = 0; i < 6; ++i) {
    for (const float value : {NAN, -NAN, INFINITY, -INFINITY}) {
      File file;
      file.at<float>(64)[i] = value;
      CHECK_THROWS(file.table().floats("f", {2, 3}), ModelError, "tensor 'f' holds a value that is not finite");
    }
    for (const float value : {3.4e38f, -3.4e38f, 1e-45f, -0.0f}) {
      File file;
      file.at<float>(64)[i] = value;
      file.table().floats("f", {2, 3});
    }
  }
  File file;
  file.at<float>(64)[6] = NAN;  // behind the tensor
  file.table().floats("f", {2, 3});
}

TEST(a_tensor_that_nobody_takes_is_refused) {
  File file;
  TensorTable table = file.table();
  table.floats("f", {2, 3});
  table.int8s("b", {64});
  table.length("i");  // looking is not taking
  CHECK_THROWS(table.expect_all_used(), ModelError, "tensor 'i' is not part of this model");
  table.int32s("i", {4});
  table.expect_all_used();
}

TEST(a_tensor_without_elements_is_a_tensor) {
  File file;
  file.tensors = {{"none", {"I32", {0}, 64, 64}}, {"end", {"F32", {0}, 256, 256}}};
  TensorTable table = file.table();
  CHECK_EQ(table.length("none"), 0);
  table.int32s("none", {0});
  table.floats("end", {0});
  table.expect_all_used();
}

TEST(an_empty_file_has_no_tensors) {
  TensorTable table(nullptr, 0, {});
  table.expect_all_used();
  CHECK_THROWS(table.floats("f", {1}), ModelError, "missing");
}

}  // namespace
}  // namespace agnews_fast
