#include "engine.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <vector>

#include "check.h"
#include "failing_allocation.h"
#include "kernels/registry.h"
#include "model/error.h"
#include "model/random_model.h"
#include "runtime/float_environment.h"
#include "temporary_file.h"

namespace agnews_fast {
namespace {

struct Answer {
  std::vector<float> logits, first_token;
};

Answer run(Engine& engine, const Batch& batch) {
  Answer answer = {std::vector<float>(static_cast<std::size_t>(batch.texts * engine.config().labels), NAN),
                   std::vector<float>(static_cast<std::size_t>(batch.texts * engine.config().hidden), NAN)};
  engine.run(batch, answer.logits.data(), answer.first_token.data());
  return answer;
}

template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}
bool same_bits(const Answer& a, const Answer& b) {
  return same_bits(a.logits, b.logits) && same_bits(a.first_token, b.first_token);
}

// A model in a file, 40 texts, and what one thread answers to each of them by itself.
struct Fixture {
  explicit Fixture(const Config& config = test_configs().front())
      : model(config, 40), file(model.bytes.data(), static_cast<std::size_t>(model.bytes.size())) {
    Random random(41);
    std::vector<std::int64_t> lengths;
    for (int i = 0; i < 40; ++i) lengths.push_back(random.integer(1, i % 10 == 0 ? 110 : 30));
    texts = std::make_unique<Texts>(config, lengths, 42);
    const std::unique_ptr<Engine> one = engine(1);
    for (std::int64_t text = 0; text < 40; ++text) alone.push_back(run(*one, batch(text, text + 1)));
  }

  std::unique_ptr<Engine> engine(int threads, const std::string& isa = "", int largest_team = 1024) const {
    return std::make_unique<Engine>(file.descriptor(), model.plain.config, model.tensors, threads, isa, largest_team);
  }
  Batch batch(std::int64_t begin, std::int64_t end) const {
    return Batch{texts->ids.data(), texts->offsets.data(), 40}.slice(begin, end);
  }
  Answer expected(std::int64_t begin, std::int64_t end) const {
    Answer all;
    for (std::int64_t text = begin; text < end; ++text) {
      const Answer& one = alone[static_cast<std::size_t>(text)];
      all.logits.insert(all.logits.end(), one.logits.begin(), one.logits.end());
      all.first_token.insert(all.first_token.end(), one.first_token.begin(), one.first_token.end());
    }
    return all;
  }

  RandomModel model;
  TemporaryFile file;
  std::unique_ptr<Texts> texts;
  std::vector<Answer> alone;
};

const Fixture& fixture() {
  static const Fixture made;
  return made;
}

constexpr std::pair<int, int> kRanges[] = {{0, 1},   {0, 2},   {0, 40}, {5, 12}, {10, 11},
                                           {20, 23}, {39, 40}, {0, 0},  {40, 40}};

TEST(an_engine_says_what_it_is) {
  const std::unique_ptr<Engine> engine = fixture().engine(3, "scalar");
  CHECK_EQ(std::string(engine->isa()), "scalar");
  CHECK_EQ(engine->threads(), 3);
  CHECK_EQ(engine->config().hidden, 128);
  CHECK_EQ(std::string(fixture().engine(1)->isa()), available_kernels().back()->name);
}

TEST(batches_of_any_size_and_any_number_of_threads_give_the_same_bits) {
  for (const int threads : {1, 2, 3, 5}) {
    const std::unique_ptr<Engine> engine = fixture().engine(threads);
    for (const auto& [begin, end] : kRanges) {
      const check::Scope scope("threads ", threads, ", texts ", begin, " to ", end);
      CHECK(same_bits(run(*engine, fixture().batch(begin, end)), fixture().expected(begin, end)));
    }
  }
}

TEST(a_team_smaller_than_the_pool_gives_the_same_bits) {
  for (const int largest_team : {1, 2, 3}) {
    const check::Scope scope("largest team ", largest_team);
    const std::unique_ptr<Engine> engine = fixture().engine(4, "", largest_team);
    for (const auto& [begin, end] : kRanges) {
      CHECK(same_bits(run(*engine, fixture().batch(begin, end)), fixture().expected(begin, end)));
    }
  }
}

TEST(every_instruction_set_gives_the_same_bits) {
  for (const Kernels* kernels : available_kernels()) {
    const check::Scope scope("instruction set ", kernels->name);
    const std::unique_ptr<Engine> engine = fixture().engine(2, kernels->name);
    CHECK(same_bits(run(*engine, fixture().batch(0, 12)), fixture().expected(0, 12)));
  }
}

TEST(other_sizes_run_too) {
  for (const Config& config : test_configs()) {
    const check::Scope scope("hidden ", config.hidden);
    const Fixture other(config);
    for (const int threads : {1, 4}) {
      CHECK(same_bits(run(*other.engine(threads), other.batch(0, 40)), other.expected(0, 40)));
    }
  }
}

TEST(many_callers_at_once_get_their_own_answers) {
  for (const int threads : {1, 2, 3}) {
    const check::Scope scope("threads ", threads);
    const std::unique_ptr<Engine> engine = fixture().engine(threads);  // its pool is made by whoever comes first
    std::vector<int> wrong(4, 0);
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 4; ++caller) {
      callers.emplace_back([&, caller] {
        for (int round = 0; round < 4; ++round) {
          const std::int64_t begin = (caller * 7 + round * 5) % 30, end = begin + 1 + (caller + 3 * round) % 10;
          const Answer got = run(*engine, fixture().batch(begin, end));
          if (!same_bits(got, fixture().expected(begin, end))) ++wrong[static_cast<std::size_t>(caller)];
        }
      });
    }
    for (std::thread& caller : callers) caller.join();
    CHECK_EQ(std::count(wrong.begin(), wrong.end(), 0), 4);
  }
}

TEST(an_allocation_that_fails_is_reported_and_does_no_harm) {
  for (const Kernels* kernels : {available_kernels().front(), available_kernels().back()}) {
    for (const auto& [begin, end] : {std::pair{10, 11}, std::pair{0, 20}}) {  // one chunk for a team, and several
      for (int nth = 1;; ++nth) {
        const check::Scope scope("instruction set ", kernels->name, ", texts from ", begin, ", allocation ", nth,
                                 " fails");
        const std::unique_ptr<Engine> engine = fixture().engine(3, kernels->name);
        {
          const FailingAllocation failing(nth);
          try {
            run(*engine, fixture().batch(begin, end));
          } catch (const std::bad_alloc&) {
          }
          if (!failing.happened()) break;
        }
        CHECK(same_bits(run(*engine, fixture().batch(begin, end)), fixture().expected(begin, end)));
      }
    }
  }
}

TEST(ids_and_lengths_out_of_range_are_refused_and_do_no_harm) {
  const Config& config = fixture().model.plain.config;
  const std::unique_ptr<Engine> engine = fixture().engine(2);
  const auto run_texts = [&](std::vector<std::int32_t> ids, std::vector<std::int64_t> offsets) {
    run(*engine, {ids.data(), offsets.data(), static_cast<std::int64_t>(offsets.size()) - 1});
  };
  const auto last = static_cast<std::int32_t>(config.vocabulary - 1);
  run_texts({0, last, 5}, {0, 2, 3});
  CHECK_THROWS(run_texts({0, 1, last + 1}, {0, 1, 3}), std::invalid_argument,
               "text 1, token 1: expected an id from 0 to 99, got 100");
  CHECK_THROWS(run_texts({-1}, {0, 1}), std::invalid_argument, "text 0, token 0: expected an id from 0 to 99, got -1");
  CHECK_THROWS(run_texts({INT32_MIN}, {0, 1}), std::invalid_argument, "got -2147483648");
  CHECK_THROWS(run_texts({1, 2}, {0, 1, 1, 2}), std::invalid_argument, "text 1: expected 1 to 110 tokens, got 0");
  CHECK_THROWS(run_texts({1, 2}, {0, 2, 1}), std::invalid_argument, "text 1: expected 1 to 110 tokens, got -1");
  run_texts(std::vector<std::int32_t>(110, 3), {0, 110});
  CHECK_THROWS(run_texts(std::vector<std::int32_t>(111, 3), {0, 111}), std::invalid_argument,
               "text 0: expected 1 to 110 tokens, got 111");
  std::vector<std::int32_t> ids = {-7};
  const std::vector<std::int64_t> offsets = {0, 1};
  CHECK_THROWS(engine->channel_maxima({ids.data(), offsets.data(), 1}), std::invalid_argument, "got -7");
  CHECK(same_bits(run(*engine, fixture().batch(0, 5)), fixture().expected(0, 5)));
}

TEST(what_cannot_be_opened_or_used_is_refused) {
  const Fixture& f = fixture();
  const Config& config = f.model.plain.config;
  CHECK_THROWS(Engine(-1, config, f.model.tensors, 1, ""), std::system_error, "");
  CHECK_THROWS(f.engine(0), std::invalid_argument, "threads: expected at least 1, got 0");
  CHECK_THROWS(f.engine(-3), std::invalid_argument, "got -3");
  CHECK_THROWS(f.engine(2, "", 0), std::invalid_argument, "largest_team: expected at least 1, got 0");
  CHECK_THROWS(f.engine(1, "mmx"), std::invalid_argument, "'mmx'");
  CHECK_THROWS(Engine(f.file.descriptor(), config, {}, 1, ""), ModelError, "is missing");
  const TemporaryFile empty("", 0);
  CHECK_THROWS(Engine(empty.descriptor(), config, f.model.tensors, 1, ""), ModelError, "inside a file of 0");
  const TemporaryFile truncated(f.model.bytes.data(), static_cast<std::size_t>(f.model.bytes.size()) - 1);
  CHECK_THROWS(Engine(truncated.descriptor(), config, f.model.tensors, 1, ""), ModelError, "inside a file of");
}

TEST(maxima_of_a_batch_are_the_largest_of_its_texts) {
  const Fixture& f = fixture();
  const std::unique_ptr<Engine> engine = f.engine(2);
  const ChannelMaxima all = engine->channel_maxima(f.batch(0, 12));
  ChannelMaxima largest;
  for (std::int64_t text = 0; text < 12; ++text) {
    const ChannelMaxima one = engine->channel_maxima(f.batch(text, text + 1));
    if (largest.empty()) largest = one;
    for (std::size_t i = 0; i < one.size(); ++i) {
      for (std::size_t c = 0; c < one[i].size(); ++c) largest[i][c] = std::max(largest[i][c], one[i][c]);
    }
  }
  CHECK_EQ(all.size(), static_cast<std::size_t>(4 * engine->config().layers + 2));
  CHECK(all == largest);
}

TEST(every_stage_takes_some_time) {
  const std::array<double, kStages> seconds = fixture().engine(2)->stage_seconds(fixture().batch(0, 12));
  for (std::size_t stage = 0; stage < kStages; ++stage) {
    const check::Scope scope("stage ", kStageNames[stage]);
    CHECK(seconds[stage] > 0.0 && seconds[stage] < 600.0);
  }
}

#if defined(__x86_64__)
TEST(the_callers_float_environment_changes_nothing_and_is_kept) {
  const unsigned before = _mm_getcsr();
  const unsigned odd = before | 0x8040 | 0x2000;  // flush denormals, round down
  for (const int threads : {1, 3}) {
    _mm_setcsr(odd);
    const std::unique_ptr<Engine> engine = fixture().engine(threads);
    const Answer got = run(*engine, fixture().batch(0, 40));
    const unsigned after = _mm_getcsr();
    _mm_setcsr(before);
    CHECK_EQ(after & ~0x3fu, odd & ~0x3fu);
    CHECK(same_bits(got, fixture().expected(0, 40)));
  }
}
#endif

#if !defined(__SANITIZE_THREAD__)  // ThreadSanitizer does not follow a fork
TEST(a_forked_child_runs_with_threads_of_its_own) {
  const Fixture& f = fixture();
  for (const int threads : {1, 2, 3}) {
    for (const bool used_before : {false, true}) {
      const check::Scope scope("threads ", threads, ", used before ", used_before);
      const std::unique_ptr<Engine> engine = f.engine(threads);
      if (used_before) run(*engine, f.batch(0, 40));
      const pid_t child = ::fork();
      if (child == 0) {
        ::alarm(60);  // a child that waits for threads it does not have is killed, and the test fails
        bool same = true;
        for (int round = 0; round < 2; ++round) {
          same = same && same_bits(run(*engine, f.batch(0, 40)), f.expected(0, 40));
          same = same && same_bits(run(*engine, f.batch(3, 4)), f.expected(3, 4));
        }
        ::_exit(same ? 0 : 1);
      }
      int status = -1;
      CHECK_EQ(::waitpid(child, &status, 0), child);
      CHECK(WIFEXITED(status));
      CHECK_EQ(WEXITSTATUS(status), 0);
      CHECK(same_bits(run(*engine, f.batch(0, 40)), f.expected(0, 40)));
    }
  }
}

TEST(an_engine_can_be_destroyed_in_a_forked_child) {
  std::unique_ptr<Engine> engine = fixture().engine(3);
  run(*engine, fixture().batch(0, 40));
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(60);
    engine.reset();
    ::_exit(0);
  }
  int status = -1;
  CHECK_EQ(::waitpid(child, &status, 0), child);
  CHECK(WIFEXITED(status));
  CHECK_EQ(WEXITSTATUS(status), 0);
}
#endif

}  // namespace
}  // namespace agnews_fast
