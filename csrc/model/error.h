#pragma once

#include <stdexcept>

namespace agnews_fast {

// A model file that cannot be used; the message says what was expected, what came and where.
struct ModelError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace agnews_fast
