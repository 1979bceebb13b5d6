#pragma once

#include <cstdint>

namespace agnews_fast {

// While it lives, the nth allocation by operator new from its making on throws std::bad_alloc, in whatever thread.
class FailingAllocation {
 public:
  explicit FailingAllocation(std::int64_t nth);
  ~FailingAllocation();
  FailingAllocation(const FailingAllocation&) = delete;
  FailingAllocation& operator=(const FailingAllocation&) = delete;

  bool happened() const;
};

}  // namespace agnews_fast
