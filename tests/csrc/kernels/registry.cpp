#include "kernels/registry.h"

#include <set>
#include <stdexcept>
#include <string>

#include "check.h"

namespace agnews_fast {
namespace {

TEST(the_scalar_kernels_come_first_and_names_differ) {
  const std::vector<const Kernels*> available = available_kernels();
  CHECK(!available.empty());
  CHECK_EQ(std::string(available.front()->name), "scalar");
  std::set<std::string> names;
  for (const Kernels* kernels : available) {
    CHECK(kernels->supported());
    CHECK(names.insert(kernels->name).second);
  }
}

TEST(kernels_are_selected_by_name_and_the_fastest_by_default) {
  const std::vector<const Kernels*> available = available_kernels();
  for (const Kernels* kernels : available) CHECK_EQ(&select_kernels(kernels->name), kernels);
  CHECK_EQ(&select_kernels(""), available.back());
}

TEST(an_unknown_instruction_set_is_refused_with_the_names_there_are) {
  CHECK_THROWS(select_kernels("avx9"), std::invalid_argument, "'avx9'");
  for (const Kernels* kernels : available_kernels()) {
    CHECK_THROWS(select_kernels("avx9"), std::invalid_argument, kernels->name);
  }
  CHECK_THROWS(select_kernels("Scalar"), std::invalid_argument, "'Scalar'");
}

}  // namespace
}  // namespace agnews_fast
