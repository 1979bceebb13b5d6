#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace agnews_fast {

// size - 1 threads (fewer if the system gives no more) that sleep until there is work; the caller is the first of the
// `size` workers. One caller at a time: whoever else comes is told so by try_lock and does the work alone.
class ThreadPool {
 public:
  explicit ThreadPool(int size);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(threads_.size()) + 1; }

  // For use with std::unique_lock: the right to call run.
  bool try_lock() { return owner_.try_lock(); }
  void lock() { owner_.lock(); }
  void unlock() { owner_.unlock(); }

  // Calls task(rank) once for every rank in 0..size, rank 0 on this thread, and returns, or throws what rank 0 threw,
  // when all have ended. The other ranks must not throw. Needs the lock.
  void run(const std::function<void(int)>& task);

 private:
  void work(int rank);

  std::mutex owner_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  const std::function<void(int)>* task_ = nullptr;
  unsigned generation_ = 0;
  int running_ = 0;
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

// A number that changes in a forked child: threads made before do not exist there.
unsigned fork_generation();

}  // namespace agnews_fast
