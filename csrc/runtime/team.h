// Threads that work on one text together: each runs the same code with its own rank, and waits for the others where a
// step needs all of the step before.
#pragma once

#include <atomic>
#include <cstdint>

namespace agnews_fast {

struct Range {
  std::int64_t begin, end;
};

// Waits until `size` threads have arrived. Spins for some microseconds (steps are that short), then sleeps.
// Between two waits it deals out one loop's work.
class Barrier {
 public:
  explicit Barrier(int size) : size_(size) {}

  void wait() {
    const std::uint32_t phase = phase_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
      arrived_.store(0, std::memory_order_relaxed);
      dealt_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      phase_.notify_all();
      return;
    }
    for (int i = 0; i < kSpins; ++i) {
      if (phase_.load(std::memory_order_acquire) != phase) return;
      pause();
    }
    phase_.wait(phase, std::memory_order_acquire);
  }

  // The next of `n` things to do, which count from 0 after every wait; none at the end. Half of a member's share of what
  // is left ("guided self-scheduling", Polychronopoulos and Kuck 1987), in multiples of `part`.
  Range take(std::int64_t n, std::int64_t part) {
    std::int64_t begin = dealt_.load(std::memory_order_relaxed);
    for (;;) {
      if (begin >= n) return {n, n};
      const std::int64_t parts = (n - begin) / (2 * size_ * part);
      const std::int64_t end = begin + part * (parts < 1 ? 1 : parts);
      if (dealt_.compare_exchange_weak(begin, end, std::memory_order_relaxed)) return {begin, end < n ? end : n};
    }
  }

 private:
  static constexpr int kSpins = 2000;  // about 30 us at 3 GHz

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  const int size_;
  std::atomic<int> arrived_{0};
  std::atomic<std::uint32_t> phase_{0};
  std::atomic<std::int64_t> dealt_{0};
};

// One thread's place in its team.
struct Member {
  int rank = 0;
  int size = 1;
  Barrier* shared = nullptr;  // null in a team of one

  void barrier() const {
    if (shared != nullptr) shared->wait();
  }
  // Calls work(range) for parts of 0..n until the team has done all: who is free takes the next, large parts first. So
  // all end at about the same time, also when the system slows one down. At most one such loop between two barriers.
  template <typename Work>
  void deal(std::int64_t n, std::int64_t part, const Work& work) const {
    if (shared == nullptr) {
      work(Range{0, n});
      return;
    }
    for (Range range = shared->take(n, part); range.begin < n; range = shared->take(n, part)) work(range);
  }
  // This member's part of 0..n, the same one every time.
  Range share(std::int64_t n) const { return {n * rank / size, n * (rank + 1) / size}; }
};

}  // namespace agnews_fast
