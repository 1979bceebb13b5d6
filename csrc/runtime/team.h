// Threads that work on one text together: each runs the same code with its own rank, and waits for the others where a
// step needs all of the step before.
#pragma once

#include <atomic>
#include <cstdint>

namespace agnews_fast {

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

  // The first of the next `part` things to do; they count from 0 after every wait.
  std::int64_t take(std::int64_t part) { return dealt_.fetch_add(part, std::memory_order_relaxed); }

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

struct Range {
  std::int64_t begin, end;
};

// One thread's place in its team.
struct Member {
  int rank = 0;
  int size = 1;
  Barrier* shared = nullptr;  // null in a team of one

  void barrier() const {
    if (shared != nullptr) shared->wait();
  }
  // Calls work(range) for parts of 0..n until the team has done all: who is free takes the next, so that a member that
  // the system slows down holds up the others for one part at most. At most one such loop between two barriers.
  template <typename Work>
  void deal(std::int64_t n, std::int64_t part, const Work& work) const {
    if (shared == nullptr) {
      work(Range{0, n});
      return;
    }
    for (std::int64_t begin = shared->take(part); begin < n; begin = shared->take(part)) {
      work(Range{begin, begin + part < n ? begin + part : n});
    }
  }
  // This member's part of 0..n, the same one every time.
  Range share(std::int64_t n) const { return {n * rank / size, n * (rank + 1) / size}; }
};

}  // namespace agnews_fast
