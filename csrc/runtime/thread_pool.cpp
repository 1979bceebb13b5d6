#include "runtime/thread_pool.h"

#include <pthread.h>

#include <atomic>
#include <exception>

#include "runtime/float_environment.h"

namespace agnews_fast {
namespace {

std::atomic<unsigned> forks{0};
// When the library is loaded: a child forked while a first call registered it might count nothing, or wait for ever.
[[maybe_unused]] const int registered = ::pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1); });

}  // namespace

unsigned fork_generation() { return forks.load(); }

ThreadPool::ThreadPool(int size) {
  threads_.reserve(static_cast<std::size_t>(size) - 1);
  try {
    for (int rank = 1; rank < size; ++rank) threads_.emplace_back([this, rank] { work(rank); });
  } catch (const std::exception&) {
    // The system gives no more threads, or no memory for them: those there are do the work.
  }
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::run(const std::function<void(int)>& task) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    task_ = &task;
    running_ = static_cast<int>(threads_.size());
    ++generation_;
  }
  wake_.notify_all();
  struct Join {
    ThreadPool& pool;
    ~Join() {
      std::unique_lock<std::mutex> lock(pool.mutex_);
      pool.done_.wait(lock, [this] { return pool.running_ == 0; });
      pool.task_ = nullptr;
    }
  } const join{*this};
  task(0);
}

void ThreadPool::work(int rank) {
  const FloatEnvironment environment;
  unsigned seen = 0;
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    wake_.wait(lock, [&] { return stop_ || generation_ != seen; });
    if (stop_) return;
    seen = generation_;
    const std::function<void(int)>& task = *task_;
    lock.unlock();
    task(rank);
    lock.lock();
    if (--running_ == 0) done_.notify_one();
  }
}

}  // namespace agnews_fast
