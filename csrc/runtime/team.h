// Threads that work on one text together: each runs the same code with its own rank, and waits for the others where a
// step needs all of the step before.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>

namespace agnews_fast {

struct Range {
  std::int64_t begin, end;
};

// Part `rank` of `size` equal ones of 0..n.
inline Range equal_part(std::int64_t n, int rank, int size) { return {n * rank / size, n * (rank + 1) / size}; }

// Waits until `size` threads have arrived. Spins for some microseconds (steps are that short), then sleeps.
// Between two waits it deals out one loop's work.
class Barrier {
 public:
  explicit Barrier(int size) : size_(size), dealt_(std::make_unique<Dealt[]>(static_cast<std::size_t>(size))) {}

  void wait() {
    const std::uint32_t phase = phase_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
      arrived_.store(0, std::memory_order_relaxed);
      for (int rank = 0; rank < size_; ++rank) dealt_[rank].things.store(0, std::memory_order_relaxed);
      // Sequentially consistent: notify_all reads whether anybody sleeps, and wakes nobody up if not. After a mere
      // release that read could pass the store, and miss a member that still saw the old phase and went to sleep.
      phase_.store(phase + 1, std::memory_order_seq_cst);
      phase_.notify_all();
      return;
    }
    for (int i = 0; i < kSpins; ++i) {
      if (phase_.load(std::memory_order_acquire) != phase) return;
      pause();
    }
    phase_.wait(phase, std::memory_order_acquire);
  }

  // The next of the things in `share`, which is that of member `rank`; none at the end. Half of what is left of it, in
  // multiples of `part`. After every wait nothing has been taken.
  Range take(int rank, Range share, std::int64_t part) {
    std::atomic<std::int64_t>& taken = dealt_[rank].things;
    std::int64_t before = taken.load(std::memory_order_relaxed);
    for (;;) {
      const std::int64_t begin = share.begin + before, left = share.end - begin;
      if (left <= 0) return {share.end, share.end};
      const std::int64_t things = std::min(left, std::max(left / (2 * part), std::int64_t{1}) * part);
      if (taken.compare_exchange_weak(before, before + things, std::memory_order_relaxed)) {
        return {begin, begin + things};
      }
    }
  }

 private:
  static constexpr int kSpins = 2000;  // about 30 us at 3 GHz

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  struct alignas(64) Dealt {  // each in a cache line of its own
    std::atomic<std::int64_t> things{0};
  };

  const int size_;
  std::atomic<int> arrived_{0};
  std::atomic<std::uint32_t> phase_{0};
  std::unique_ptr<Dealt[]> dealt_;  // (size): of each member's share
};

// One thread's place in its team.
struct Member {
  int rank = 0;
  int size = 1;
  Barrier* shared = nullptr;  // null in a team of one

  void barrier() const {
    if (shared != nullptr) shared->wait();
  }
  // Calls work(range) for parts of 0..n until the team has done all. Each member takes its own share, large parts first;
  // who has done so takes what others have left, so that all end at about the same time, also when the system slows one
  // down. One part follows on the other: what a product fetches ahead is then what it needs next. At most one such loop
  // between two barriers.
  template <typename Work>
  void deal(std::int64_t n, std::int64_t part, const Work& work) const {
    if (shared == nullptr) {
      work(Range{0, n});
      return;
    }
    for (int i = 0; i < size; ++i) {
      const int other = (rank + i) % size;
      const Range whole = equal_part(n, other, size);
      for (Range range = shared->take(other, whole, part); range.begin < range.end;
           range = shared->take(other, whole, part)) {
        work(range);
      }
    }
  }
  // This member's part of 0..n, the same one every time.
  Range share(std::int64_t n) const { return equal_part(n, rank, size); }
};

}  // namespace agnews_fast
