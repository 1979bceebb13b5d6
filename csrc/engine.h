// One loaded model that any number of threads may run texts through at once.
#pragma once

#include <array>
#include <atomic>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "model/batch.h"
#include "model/forward.h"
#include "model/model.h"
#include "runtime/mapped_file.h"
#include "runtime/thread_pool.h"

namespace agnews_fast {

class Engine {
 public:
  // Maps an open file, which may be closed then, and checks it. tensors: the file's header; threads >= 1: how many a
  // call may use; isa: "" for the best; largest_team >= 1: how many of the threads may work on one text, which wait for
  // each other so often that more than there are CPUs make it slower. Throws ModelError, std::system_error or
  // std::invalid_argument.
  Engine(int file, const Config& config, std::map<std::string, TensorInfo> tensors, int threads, const std::string& isa,
         int largest_team = std::numeric_limits<int>::max());
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  const Config& config() const { return model_.config; }
  const char* isa() const { return kernels_.name; }
  int threads() const { return threads_; }

  // Writes logits (texts, labels) and first_token (texts, hidden). The same bits for a text whatever else is in the
  // batch and however many threads work on it. Throws std::invalid_argument if an id or a length is out of range.
  void run(const Batch& batch, float* logits, float* first_token);

  // The largest magnitude of each input channel of each Linear over a batch; what the quantiser chooses wide channels by.
  ChannelMaxima channel_maxima(const Batch& batch);

  // Seconds that each Stage takes for a batch, on this thread alone.
  std::array<double, kStages> stage_seconds(const Batch& batch);

 private:
  struct Process;  // threads and scratch memory, which belong to one process

  void check(const Batch& batch) const;
  void run_alone(const Batch& chunk, float* logits, float* first_token);
  void observe(const Batch& batch, const Observer& observer);
  void run_together(ThreadPool& threads, const Batch& batch, float* logits, float* first_token);
  Process& process();
  std::unique_ptr<Workspace> take_workspace(const Batch& batch, int members);
  void give_back(std::unique_ptr<Workspace> workspace);

  MappedFile file_;
  const Kernels& kernels_;
  Model model_;
  const int threads_;
  const int largest_team_;
  std::atomic<Process*> process_{nullptr};
};

}  // namespace agnews_fast
