// A small test harness. TEST(name) { ... } registers a test; the first CHECK that fails ends it, and its message says
// what was expected, what came, where, and in which scopes. CHECKs belong on the test's own thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace agnews_fast::check {

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Test {
  const char* name;
  void (*run)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

struct Registration {
  Registration(const char* name, void (*run)()) { tests().push_back({name, run}); }
};

inline std::vector<std::string>& scopes() {
  static std::vector<std::string> open;
  return open;
}

template <typename T>
std::string show(const T& value) {
  std::ostringstream text;
  text.precision(std::numeric_limits<double>::max_digits10);
  if constexpr (std::is_integral_v<T>) {
    text << +value;  // bytes as numbers, not as characters
  } else {
    text << value;
  }
  return text.str();
}

// Names what a loop is at, for the messages of the checks within.
struct Scope {
  template <typename... Parts>
  explicit Scope(const Parts&... parts) {
    std::string text;
    ((text += show(parts)), ...);
    scopes().push_back(std::move(text));
  }
  ~Scope() { scopes().pop_back(); }
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;
};

[[noreturn]] inline void fail(const char* file, int line, const std::string& what) {
  std::string text = std::string(file) + ":" + std::to_string(line) + ": " + what;
  for (const std::string& scope : scopes()) text += "\n    in " + scope;
  throw Failure(text);
}

template <typename A, typename B>
bool equal(const A& a, const B& b) {
  constexpr bool kNumbers = std::is_integral_v<A> && std::is_integral_v<B>;
  if constexpr (kNumbers && !std::is_same_v<A, bool> && !std::is_same_v<B, bool>) {
    return std::cmp_equal(a, b);
  } else {
    return a == b;
  }
}

template <typename A, typename B>
void expect_equal(const char* file, int line, const char* expression, const A& got, const B& expected) {
  if (!equal(got, expected))
    fail(file, line, std::string(expression) + ": expected " + show(expected) + ", got " + show(got));
}

// Written so that a NaN on either side fails.
inline void expect_near(const char* file, int line, const char* expression, double got, double expected,
                        double tolerance) {
  if (!(got - expected <= tolerance && expected - got <= tolerance)) {
    fail(file, line,
         std::string(expression) + ": expected " + show(expected) + " within " + show(tolerance) + ", got " +
             show(got) + " (off by " + show(got - expected) + ")");
  }
}

template <typename Exception>
void expect_throw(const char* file, int line, const char* expression, const std::function<void()>& run,
                  const std::string& part) {
  try {
    run();
  } catch (const Exception& e) {
    if (std::string(e.what()).find(part) != std::string::npos) return;
    fail(file, line, std::string(expression) + ": expected a message with '" + part + "', got '" + e.what() + "'");
  } catch (const std::exception& e) {
    fail(file, line, std::string(expression) + ": threw another type of exception: " + e.what());
  }
  fail(file, line, std::string(expression) + ": expected an exception, got none");
}

// Equal byte for byte, so that -0.0 is not 0.0 and a NaN is itself.
template <typename T>
void expect_same_bits(const char* file, int line, const char* expression, const T* got, const T* expected,
                      std::int64_t size) {
  if (size == 0 || std::memcmp(got, expected, static_cast<std::size_t>(size) * sizeof(T)) == 0) return;
  std::int64_t i = 0;
  while (std::memcmp(got + i, expected + i, sizeof(T)) == 0) ++i;
  fail(file, line,
       std::string(expression) + "[" + std::to_string(i) + "] of " + std::to_string(size) + ": expected the bits of " +
           show(expected[i]) + ", got " + show(got[i]));
}

// Runs every test whose name contains argv[1], all without it.
inline int run_all(int argc, char** argv) {
  int ran = 0, failed = 0;
  for (const Test& test : tests()) {
    if (argc > 1 && std::strstr(test.name, argv[1]) == nullptr) continue;
    ++ran;
    std::string message;
    const auto start = std::chrono::steady_clock::now();
    try {
      test.run();
    } catch (const std::exception& e) {
      message = e.what();
      ++failed;
    }
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::printf("%s %s (%.2f s)\n", message.empty() ? "ok    " : "FAILED", test.name, seconds);
    if (!message.empty()) std::printf("  %s\n", message.c_str());
    std::fflush(stdout);
  }
  std::printf("%d tests, %d failed\n", ran, failed);
  if (ran == 0) std::printf("expected at least one test to run\n");
  return ran > 0 && failed == 0 ? 0 : 1;
}

}  // namespace agnews_fast::check

#define TEST(name)                                                                  \
  static void name();                                                               \
  static const ::agnews_fast::check::Registration name##_registration(#name, name); \
  static void name()
#define CHECK(condition)                                                                      \
  do {                                                                                        \
    if (!(condition)) ::agnews_fast::check::fail(__FILE__, __LINE__, "expected " #condition); \
  } while (false)
#define CHECK_EQ(got, expected) ::agnews_fast::check::expect_equal(__FILE__, __LINE__, #got, (got), (expected))
#define CHECK_NEAR(got, expected, tolerance) \
  ::agnews_fast::check::expect_near(__FILE__, __LINE__, #got, (got), (expected), (tolerance))
#define CHECK_THROWS(expression, Exception, part) \
  ::agnews_fast::check::expect_throw<Exception>(  \
      __FILE__, __LINE__, #expression, [&] { static_cast<void>(expression); }, (part))
#define CHECK_SAME_BITS(got, expected, size) \
  ::agnews_fast::check::expect_same_bits(__FILE__, __LINE__, #got, (got), (expected), (size))
