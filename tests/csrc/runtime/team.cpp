#include "runtime/team.h"

#include <atomic>
#include <thread>
#include <vector>

#include "check.h"

namespace agnews_fast {
namespace {

TEST(shares_cover_everything_once_and_evenly) {
  for (int size = 1; size <= 9; ++size) {
    for (std::int64_t n = 0; n <= 40; ++n) {
      const check::Scope scope("n ", n, ", size ", size);
      std::int64_t next = 0;
      for (int rank = 0; rank < size; ++rank) {
        const Range share = Member{rank, size, nullptr}.share(n);
        CHECK_EQ(share.begin, next);
        CHECK(share.end - share.begin >= n / size && share.end - share.begin <= n / size + 1);
        next = share.end;
      }
      CHECK_EQ(next, n);
    }
  }
}

TEST(a_team_of_one_does_not_wait) {
  Member{}.barrier();
  Barrier alone(1);
  for (int i = 0; i < 100; ++i) Member{0, 1, &alone}.barrier();
}

TEST(nobody_passes_a_barrier_before_all_have_arrived) {
  constexpr int kRounds = 2000;
  for (const int size : {2, 3, 4}) {
    const check::Scope scope("size ", size);
    Barrier barrier(size);
    std::vector<std::atomic<int>> arrived(kRounds);
    // Written by one member a round without synchronisation but the barrier's; ThreadSanitizer watches it.
    std::vector<int> plain(kRounds, -1);
    std::atomic<int> early{0}, wrong{0};
    const auto work = [&](int rank) {
      const Member member{rank, size, &barrier};
      for (int round = 0; round < kRounds; ++round) {
        if (round % size == rank) plain[static_cast<std::size_t>(round)] = round;
        ++arrived[static_cast<std::size_t>(round)];
        member.barrier();
        if (arrived[static_cast<std::size_t>(round)] != size) ++early;
        if (plain[static_cast<std::size_t>(round)] != round) ++wrong;
      }
    };
    std::vector<std::thread> threads;
    for (int rank = 1; rank < size; ++rank) threads.emplace_back(work, rank);
    work(0);
    for (std::thread& thread : threads) thread.join();
    CHECK_EQ(early.load(), 0);
    CHECK_EQ(wrong.load(), 0);
  }
}

TEST(a_team_does_every_part_of_a_loop_once) {
  constexpr int kRounds = 300;
  for (const int size : {1, 2, 3}) {
    for (const std::int64_t part : {1, 4, 100}) {
      const check::Scope scope("size ", size, ", part ", part);
      Barrier barrier(size);
      std::vector<std::vector<int>> done;  // without synchronisation but that of the dealing
      for (int round = 0; round < kRounds; ++round) done.emplace_back(static_cast<std::size_t>(round % 31), 0);
      const auto work = [&](int rank) {
        const Member member{rank, size, size > 1 ? &barrier : nullptr};
        for (std::vector<int>& items : done) {
          member.deal(static_cast<std::int64_t>(items.size()), part, [&](Range range) {
            for (std::int64_t i = range.begin; i < range.end; ++i) ++items[static_cast<std::size_t>(i)];
          });
          member.barrier();
        }
      };
      std::vector<std::thread> threads;
      for (int rank = 1; rank < size; ++rank) threads.emplace_back(work, rank);
      work(0);
      for (std::thread& thread : threads) thread.join();
      for (const std::vector<int>& items : done) {
        for (const int times : items) CHECK_EQ(times, 1);
      }
    }
  }
}

TEST(a_member_takes_its_own_share_first_one_part_after_the_other) {
  Barrier barrier(3);
  std::vector<Range> parts;
  Member{1, 3, &barrier}.deal(60, 2, [&](Range range) { parts.push_back(range); });
  std::int64_t next = 20, largest = 10;  // of its own share; then the third's, then the first's
  for (const Range& part : parts) {
    const check::Scope scope("part from ", part.begin);
    if (next % 20 == 0) largest = 10;  // half a share
    CHECK_EQ(part.begin, next);
    CHECK(part.end - part.begin >= 2 && part.end - part.begin <= largest);
    largest = part.end - part.begin;
    next = part.end % 60;
  }
  CHECK_EQ(next, 20);
}

TEST(a_member_that_is_held_up_leaves_what_it_has_not_taken_to_the_others) {
  constexpr std::int64_t kItems = 40;
  Barrier barrier(2);
  std::atomic<std::int64_t> taken{0};  // by rank 0, in its first part
  std::atomic<bool> rest_done{false};
  std::int64_t done[2] = {};
  const auto work = [&](int rank) {
    Member{rank, 2, &barrier}.deal(kItems, 1, [&](Range range) {
      done[rank] += range.end - range.begin;
      if (rank == 0) {
        taken = range.end - range.begin;
        taken.notify_all();
        rest_done.wait(false);  // until the other has done all the rest
      } else if (done[rank] == kItems - taken) {
        rest_done = true;
        rest_done.notify_all();
      }
    });
  };
  std::thread other([&] {
    taken.wait(0);
    work(1);
  });
  work(0);
  other.join();
  CHECK_EQ(done[0], taken.load());
  CHECK_EQ(done[1], kItems - taken);
  CHECK_EQ(taken.load(), kItems / 4);  // half of its share
}

TEST(a_late_member_wakes_those_that_fell_asleep) {
  for (int i = 0; i < 5; ++i) {
    Barrier barrier(3);
    std::atomic<int> passed{0};
    std::vector<std::thread> threads;
    for (int rank = 1; rank < 3; ++rank) {
      threads.emplace_back([&] {
        barrier.wait();
        ++passed;
      });
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));  // far longer than they spin
    CHECK_EQ(passed.load(), 0);
    barrier.wait();
    for (std::thread& thread : threads) thread.join();
    CHECK_EQ(passed.load(), 2);
  }
}

}  // namespace
}  // namespace agnews_fast
