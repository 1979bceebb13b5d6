#include "failing_allocation.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace agnews_fast {
namespace {

std::atomic<std::int64_t> left{0};  // allocations up to the one that fails; none does from 0 down

void* allocate(std::size_t size, std::size_t alignment) {
  if (left.load() > 0 && left.fetch_sub(1) == 1) throw std::bad_alloc();
  void* memory =
      std::aligned_alloc(alignment, (std::max<std::size_t>(size, 1) + alignment - 1) / alignment * alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

FailingAllocation::FailingAllocation(std::int64_t nth) { left = nth; }
FailingAllocation::~FailingAllocation() { left = 0; }
bool FailingAllocation::happened() const { return left.load() <= 0; }

}  // namespace agnews_fast

void* operator new(std::size_t size) { return agnews_fast::allocate(size, alignof(std::max_align_t)); }
void* operator new(std::size_t size, std::align_val_t alignment) {
  return agnews_fast::allocate(size, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
