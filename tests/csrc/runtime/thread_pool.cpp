#include "runtime/thread_pool.h"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <set>
#include <stdexcept>

#include "check.h"
#include "failing_allocation.h"
#include "runtime/float_environment.h"

namespace agnews_fast {
namespace {

TEST(every_rank_runs_once_in_each_of_many_runs) {
  for (const int size : {1, 2, 3, 8}) {
    const check::Scope scope("size ", size);
    ThreadPool pool(size);
    CHECK_EQ(pool.size(), size);
    std::vector<int> runs(static_cast<std::size_t>(size), 0);  // plain: run() has to order the runs
    const int rounds = size == 8 ? 200 : 1000;
    for (int round = 0; round < rounds; ++round) {
      pool.run([&](int rank) { ++runs[static_cast<std::size_t>(rank)]; });
      for (const int count : runs) CHECK_EQ(count, round + 1);
    }
  }
}

TEST(rank_0_is_the_caller_and_the_others_are_threads_of_their_own) {
  ThreadPool pool(4);
  std::vector<std::thread::id> first(4), second(4);
  pool.run([&](int rank) { first[static_cast<std::size_t>(rank)] = std::this_thread::get_id(); });
  pool.run([&](int rank) { second[static_cast<std::size_t>(rank)] = std::this_thread::get_id(); });
  CHECK(first[0] == std::this_thread::get_id());
  CHECK_EQ(std::set<std::thread::id>(first.begin(), first.end()).size(), 4u);
  CHECK(first == second);
}

TEST(run_returns_when_the_slowest_is_done) {
  ThreadPool pool(3);
  std::atomic<int> done{0};
  pool.run([&](int rank) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10 * rank));
    ++done;
  });
  CHECK_EQ(done.load(), 3);
}

TEST(a_pool_can_be_destroyed_unused_and_idle) {
  for (int i = 0; i < 50; ++i) {
    ThreadPool unused(1 + i % 4);
    ThreadPool idle(1 + i % 4);
    idle.run([](int) {});
  }
}

TEST(a_task_that_throws_on_the_callers_thread_leaves_no_other_running) {
  ThreadPool pool(3);
  std::atomic<int> done{0};
  const auto task = [&](int rank) {
    if (rank == 0) throw std::runtime_error("rank 0");
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    ++done;
  };
  CHECK_THROWS(pool.run(task), std::runtime_error, "rank 0");
  CHECK_EQ(done.load(), 2);
  pool.run([&](int) { ++done; });
  CHECK_EQ(done.load(), 5);
}

TEST(without_memory_a_pool_has_fewer_threads_or_is_not_made) {
  for (int nth = 1;; ++nth) {
    const check::Scope scope("allocation ", nth, " fails");
    const FailingAllocation failing(nth);
    try {
      ThreadPool pool(4);
      if (!failing.happened()) break;
      std::atomic<int> ranks{0};
      pool.run([&](int) { ++ranks; });
      CHECK_EQ(ranks.load(), pool.size());
    } catch (const std::bad_alloc&) {
    }
  }
}

TEST(only_one_caller_holds_a_pool) {
  ThreadPool pool(2);
  CHECK(pool.try_lock());
  bool second = true;
  std::thread([&] { second = pool.try_lock(); }).join();
  CHECK(!second);
  pool.unlock();
  const std::unique_lock<ThreadPool> lock(pool, std::try_to_lock);
  CHECK(lock.owns_lock());
}

#if defined(__x86_64__)
TEST(workers_compute_in_the_default_float_environment) {
  const unsigned before = _mm_getcsr();
  _mm_setcsr(before | 0x8040);  // threads inherit it: denormals flushed
  unsigned modes[3] = {};
  {
    ThreadPool pool(3);
    pool.run([&](int rank) { modes[rank] = _mm_getcsr() & ~0x3fu; });
  }
  _mm_setcsr(before);
  CHECK_EQ(modes[1], 0x1f80u);
  CHECK_EQ(modes[2], 0x1f80u);
}
#endif

#if !defined(__SANITIZE_THREAD__)  // ThreadSanitizer does not follow a fork
TEST(a_forked_child_has_another_generation) {
  const unsigned before = fork_generation();
  const pid_t child = ::fork();
  if (child == 0) ::_exit(fork_generation() != before ? 0 : 1);
  int status = -1;
  CHECK_EQ(::waitpid(child, &status, 0), child);
  CHECK(WIFEXITED(status));
  CHECK_EQ(WEXITSTATUS(status), 0);
  CHECK_EQ(fork_generation(), before);
}
#endif

}  // namespace
}  // namespace agnews_fast
