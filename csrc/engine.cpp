#include "engine.h"

#include <algorithm>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "kernels/registry.h"
#include "runtime/float_environment.h"

namespace agnews_fast {
namespace {

// Texts are computed in chunks of about so many tokens: enough rows to use each weight panel many times while it is in
// the cache, few enough that the activations stay there too.
constexpr std::int64_t kChunkTokens = 384;
// What threads share ends in smaller chunks, of about so many tokens at least, the smallest last, so that all finish at
// about the same time. Matrix products are as fast with so few rows.
constexpr std::int64_t kLastChunkTokens = 48;

Model load(const MappedFile& file, const Config& config, std::map<std::string, TensorInfo> tensors,
           const Kernels& kernels) {
  TensorTable table(file.data(), file.size(), std::move(tensors));
  return Model(config, table, kernels);
}

// Whether dealing out the chunks one by one keeps `threads` busy to the end, or would leave some without work.
bool divides_well(const std::vector<Batch>& chunks, int threads) {
  std::vector<std::int64_t> load(static_cast<std::size_t>(threads), 0);
  std::int64_t total = 0;
  for (const Batch& chunk : chunks) {
    *std::min_element(load.begin(), load.end()) += chunk.tokens();
    total += chunk.tokens();
  }
  return *std::max_element(load.begin(), load.end()) * threads * 8 <= total * 9;
}

// Whole texts, about as many tokens in each part as the constants above say, the longest parts first where several
// threads share them.
std::vector<Batch> split(const Batch& batch, std::int64_t threads) {
  std::vector<Batch> parts;
  std::int64_t left = batch.tokens();
  for (std::int64_t begin = 0, end = 0; begin < batch.texts; begin = end) {
    // One thread takes equal parts; several take half of their share of what is left ("guided self-scheduling",
    // Polychronopoulos and Kuck 1987).
    const std::int64_t rounds = (left + kChunkTokens - 1) / kChunkTokens;
    const std::int64_t target =
        threads == 1 ? (left + rounds - 1) / rounds : std::clamp(left / (2 * threads), kLastChunkTokens, kChunkTokens);
    std::int64_t size = batch.length(end++);
    while (end < batch.texts && size + batch.length(end) / 2 <= target) size += batch.length(end++);
    parts.push_back(batch.slice(begin, end));
    left -= size;
  }
  if (threads > 1) {
    std::sort(parts.begin(), parts.end(), [](const Batch& a, const Batch& b) {
      return a.tokens() != b.tokens() ? a.tokens() > b.tokens() : a.offsets < b.offsets;
    });
  }
  return parts;
}

}  // namespace

struct Engine::Process {
  explicit Process(int size) : generation(fork_generation()), threads(size) {}
  const unsigned generation;
  ThreadPool threads;
  std::mutex idle_mutex;
  std::vector<std::unique_ptr<Workspace>> idle;
};

Engine::Engine(int file, const Config& config, std::map<std::string, TensorInfo> tensors, int threads,
               const std::string& isa, int largest_team)
    : file_(file),
      kernels_(select_kernels(isa)),
      model_(load(file_, config, std::move(tensors), kernels_)),
      threads_(threads),
      largest_team_(largest_team) {
  if (threads < 1) throw std::invalid_argument("threads: expected at least 1, got " + std::to_string(threads));
  if (largest_team < 1) {
    throw std::invalid_argument("largest_team: expected at least 1, got " + std::to_string(largest_team));
  }
}

Engine::~Engine() {
  Process* current = process_.load();
  // What another process made before a fork is left behind: its threads do not run here, its locks may be held for ever.
  if (current != nullptr && current->generation == fork_generation()) delete current;
}

Engine::Process& Engine::process() {
  Process* current = process_.load();
  if (current == nullptr || current->generation != fork_generation()) {
    auto fresh = std::make_unique<Process>(threads_);
    if (process_.compare_exchange_strong(current, fresh.get())) current = fresh.release();
  }
  return *current;
}

void Engine::check(const Batch& batch) const {
  for (std::int64_t text = 0; text < batch.texts; ++text) {
    const std::int64_t length = batch.length(text);
    if (length < 1 || length > model_.config.positions) {
      throw std::invalid_argument("text " + std::to_string(text) + ": expected 1 to " +
                                  std::to_string(model_.config.positions) + " tokens, got " + std::to_string(length));
    }
    for (std::int64_t i = batch.offsets[text]; i < batch.offsets[text + 1]; ++i) {
      if (batch.ids[i] < 0 || batch.ids[i] >= model_.config.vocabulary) {
        throw std::invalid_argument("text " + std::to_string(text) + ", token " +
                                    std::to_string(i - batch.offsets[text]) + ": expected an id from 0 to " +
                                    std::to_string(model_.config.vocabulary - 1) + ", got " +
                                    std::to_string(batch.ids[i]));
      }
    }
  }
}

std::unique_ptr<Workspace> Engine::take_workspace(const Batch& batch, int members) {
  Process& here = process();
  std::unique_ptr<Workspace> workspace;
  {
    const std::lock_guard<std::mutex> lock(here.idle_mutex);
    if (!here.idle.empty()) {
      workspace = std::move(here.idle.back());
      here.idle.pop_back();
    }
  }
  if (workspace == nullptr) workspace = std::make_unique<Workspace>();
  workspace->grow(model_, batch, members);
  return workspace;
}

void Engine::give_back(std::unique_ptr<Workspace> workspace) {
  Process& here = process();
  const std::lock_guard<std::mutex> lock(here.idle_mutex);
  here.idle.push_back(std::move(workspace));
}

void Engine::run_alone(const Batch& chunk, float* logits, float* first_token) {
  std::unique_ptr<Workspace> workspace = take_workspace(chunk, 1);
  Forward(model_, kernels_, *workspace).run(chunk, Member{}, logits, first_token);
  give_back(std::move(workspace));
}

void Engine::run_together(ThreadPool& threads, const Batch& batch, float* logits, float* first_token) {
  const auto logits_of = [&](const Batch& chunk) { return logits + (chunk.offsets - batch.offsets) * config().labels; };
  const auto first_token_of = [&](const Batch& chunk) {
    return first_token + (chunk.offsets - batch.offsets) * config().hidden;
  };
  const std::vector<Batch> chunks = split(batch, threads.size());
  if (divides_well(chunks, threads.size())) {
    std::vector<std::unique_ptr<Workspace>> workspaces;
    for (int rank = 0; rank < threads.size(); ++rank) workspaces.push_back(take_workspace(batch.slice(0, 0), 1));
    std::atomic<std::size_t> next{0};
    std::atomic<bool> out_of_memory{false};
    threads.run([&](int rank) {
      Workspace& workspace = *workspaces[static_cast<std::size_t>(rank)];
      try {
        for (std::size_t i = next++; i < chunks.size(); i = next++) {
          workspace.grow(model_, chunks[i], 1);
          Forward(model_, kernels_, workspace)
              .run(chunks[i], Member{}, logits_of(chunks[i]), first_token_of(chunks[i]));
        }
      } catch (const std::bad_alloc&) {
        out_of_memory = true;
      }
    });
    for (auto& workspace : workspaces) give_back(std::move(workspace));
    if (out_of_memory) throw std::bad_alloc();
    return;
  }
  const int members = std::min(threads.size(), largest_team_);
  for (const Batch& chunk : split(batch, 1)) {
    std::unique_ptr<Workspace> workspace = take_workspace(chunk, members);
    Barrier barrier(members);
    threads.run([&](int rank) {
      if (rank >= members) return;
      Forward(model_, kernels_, *workspace)
          .run(chunk, Member{rank, members, &barrier}, logits_of(chunk), first_token_of(chunk));
    });
    give_back(std::move(workspace));
  }
}

void Engine::run(const Batch& batch, float* logits, float* first_token) {
  check(batch);
  const FloatEnvironment environment;
  for (const Batch& chunk : split(batch, 1)) {
    const std::int64_t first = chunk.offsets - batch.offsets;
    float* const logits_left = logits + first * config().labels;
    float* const first_token_left = first_token + first * config().hidden;
    if (threads_ > 1) {
      // Other callers may hold the pool; then this thread goes on alone, and asks again after each chunk.
      ThreadPool& shared = process().threads;
      const std::unique_lock<ThreadPool> lock(shared, std::try_to_lock);
      if (lock.owns_lock()) {
        run_together(shared, batch.slice(first, batch.texts), logits_left, first_token_left);
        return;
      }
    }
    run_alone(chunk, logits_left, first_token_left);
  }
}

void Engine::observe(const Batch& batch, const Observer& observer) {
  check(batch);
  const FloatEnvironment environment;
  std::vector<float> logits(static_cast<std::size_t>(batch.texts * config().labels));
  std::vector<float> first_token(static_cast<std::size_t>(batch.texts * config().hidden));
  for (const Batch& chunk : split(batch, 1)) {
    std::unique_ptr<Workspace> workspace = take_workspace(chunk, 1);
    Forward(model_, kernels_, *workspace, observer).run(chunk, Member{}, logits.data(), first_token.data());
    give_back(std::move(workspace));
  }
}

ChannelMaxima Engine::channel_maxima(const Batch& batch) {
  ChannelMaxima maxima;
  for (const Linear* linear : model_.linears()) {
    maxima.emplace_back(static_cast<std::size_t>(linear->input.columns), 0.0f);
  }
  observe(batch, {.maxima = &maxima});
  return maxima;
}

std::array<double, kStages> Engine::stage_seconds(const Batch& batch) {
  std::array<double, kStages> seconds = {};
  observe(batch, {.seconds = &seconds});
  return seconds;
}

}  // namespace agnews_fast
