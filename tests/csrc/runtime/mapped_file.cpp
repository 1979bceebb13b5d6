#include "runtime/mapped_file.h"

#include <cstring>
#include <string>
#include <system_error>

#include "check.h"
#include "temporary_file.h"

namespace agnews_fast {
namespace {

TEST(a_mapped_file_holds_what_was_written) {
  const std::string text(10001, 'x');
  const TemporaryFile file(text.data(), text.size());
  const MappedFile mapped(file.descriptor());
  CHECK_EQ(mapped.size(), text.size());
  CHECK_EQ(std::memcmp(mapped.data(), text.data(), text.size()), 0);
}

TEST(a_file_stays_mapped_when_it_is_closed_and_removed) {
  const std::string text = "still here";
  auto file = std::make_unique<TemporaryFile>(text.data(), text.size());
  const MappedFile mapped(file->descriptor());
  file.reset();
  CHECK_EQ(std::memcmp(mapped.data(), text.data(), text.size()), 0);
}

TEST(an_empty_file_maps_to_nothing) {
  const TemporaryFile file("", 0);
  const MappedFile mapped(file.descriptor());
  CHECK_EQ(mapped.size(), 0u);
  CHECK(mapped.data() == nullptr);
}

TEST(what_is_not_open_is_refused) {
  try {
    const MappedFile mapped(-1);
    CHECK(false);
  } catch (const std::system_error& e) {
    CHECK(e.code() == std::errc::bad_file_descriptor);
  }
}

}  // namespace
}  // namespace agnews_fast
