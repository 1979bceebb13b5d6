// Texts as the core sees them: token ids, one text after the other, without padding.
#pragma once

#include <cstdint>

namespace agnews_fast {

struct Batch {
  const std::int32_t* ids;      // (tokens)
  const std::int64_t* offsets;  // (texts + 1): text i is ids[offsets[i]] .. ids[offsets[i + 1]]
  std::int64_t texts;

  std::int64_t length(std::int64_t text) const { return offsets[text + 1] - offsets[text]; }
  std::int64_t tokens() const { return offsets[texts] - offsets[0]; }
  std::int64_t longest() const {
    std::int64_t most = 0;
    for (std::int64_t i = 0; i < texts; ++i) most = length(i) > most ? length(i) : most;
    return most;
  }
  // Texts begin..end; offsets still count from the start of ids.
  Batch slice(std::int64_t begin, std::int64_t end) const { return {ids, offsets + begin, end - begin}; }
};

}  // namespace agnews_fast
