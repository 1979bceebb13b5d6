// Which long windows (kernels.h) fit 16 bits.
#pragma once

#include "kernels/avx2/f32x16.h"
#include "kernels/kernels.h"

namespace agnews_fast {
namespace {

constexpr float kInfinity = __builtin_huge_valf();

// Whether no long window can overflow 16 bits; with room for what rounding takes off the norms.
inline bool fit_long_windows(const float* rows, const float* weights, std::int64_t windows) {
  const __m256 most = _mm256_set1_ps(32760.0f);
  int over = 0;
  for (std::int64_t i = 0; i < windows; i += 8) {
    const __m256 bound = _mm256_mul_ps(_mm256_load_ps(rows + i), _mm256_load_ps(weights + i));
    over |= _mm256_movemask_ps(_mm256_cmp_ps(bound, most, _CMP_NLE_UQ));
  }
  return over == 0;
}

// Norms of a tile of R rows of activations up to 127, see PackedRows.
template <int R>
void tile_norms(const std::uint8_t* tile, std::int64_t k, float* norm) {
  constexpr std::int64_t kBytes = R * kGroup, kWindow = kLongDepth * kBytes;
  const std::int64_t windows = k / (kGroup * kLongDepth), size = k * R;
  // A group is 2 R lanes; what else is loaded with it belongs to the groups that follow, or would lie past the tile.
  alignas(32) std::uint8_t ours[32] = {};
  std::memset(ours, 0xff, kBytes);
  for (std::int64_t window = 0; window < windows; ++window) {
    __m256i sum = _mm256_setzero_si256();
    for (std::int64_t at = window * kWindow; at < (window + 1) * kWindow; at += kBytes) {
      __m256i u;
      if (at + 32 <= size) {
        u = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(tile + at));
      } else {
        alignas(32) std::uint8_t last[32] = {};
        std::memcpy(last, tile + at, kBytes);
        u = _mm256_load_si256(reinterpret_cast<const __m256i*>(last));
      }
      sum = _mm256_adds_epu16(sum, _mm256_maddubs_epi16(u, u));
    }
    sum = _mm256_and_si256(sum, _mm256_load_si256(reinterpret_cast<const __m256i*>(ours)));
    const __m128i most = _mm_max_epu16(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    // The instruction finds the least: 65535 less the largest.
    const int largest = 65535 - _mm_extract_epi16(_mm_minpos_epu16(_mm_xor_si128(most, _mm_set1_epi16(-1))), 0);
    norm[window] = largest == 65535 ? kInfinity : sqrt_scalar(static_cast<float>(largest));
  }
  for (std::int64_t window = windows; window < long_windows(k); ++window) norm[window] = 0.0f;
}

void activation_norms(const std::uint8_t* tile, std::int64_t rows, std::int64_t k, int levels, float* norm) {
  if (levels > 127) {  // vpmaddubsw takes one of its operands as signed
    for (std::int64_t i = 0; i < long_windows(k); ++i) norm[i] = kInfinity;
    return;
  }
  constexpr decltype(&tile_norms<1>) kRows[] = {nullptr,       tile_norms<1>, tile_norms<2>, tile_norms<3>,
                                                tile_norms<4>, tile_norms<5>, tile_norms<6>};
  kRows[rows](tile, k, norm);
}

// See Kernels::window_norms.
void weight_norms(const PackedWeights& w, float* norms) {
  const __m256i zero = _mm256_setzero_si256(), low = _mm256_set1_epi32(0xffff);
  const std::int64_t windows = w.k / (kGroup * kLongDepth), padded = long_windows(w.k);
  for (std::int64_t panel = 0; panel < w.n / kPanel; ++panel, norms += padded) {
    const auto* weights = reinterpret_cast<const __m256i*>(w.data + panel * kPanel * w.k);
    for (std::int64_t window = 0; window < windows; ++window, weights += 2 * kLongDepth) {
      __m256i largest = zero;
      for (int half = 0; half < 2; ++half) {
        __m256i squares[2][2] = {{zero, zero}, {zero, zero}};  // of positive and negative weights; even and odd lanes
        for (int group = 0; group < kLongDepth; ++group) {
          const __m256i x = _mm256_load_si256(weights + 2 * group + half);
          const __m256i parts[2] = {_mm256_max_epi8(x, zero), _mm256_max_epi8(_mm256_sub_epi8(zero, x), zero)};
          for (int i = 0; i < 2; ++i) {
            const __m256i lanes = _mm256_maddubs_epi16(parts[i], parts[i]);
            squares[i][0] = _mm256_add_epi32(squares[i][0], _mm256_and_si256(lanes, low));
            squares[i][1] = _mm256_add_epi32(squares[i][1], _mm256_srli_epi32(lanes, 16));
          }
        }
        for (const auto& part : squares) largest = _mm256_max_epi32(largest, _mm256_max_epi32(part[0], part[1]));
      }
      norms[window] = sqrt_scalar(static_cast<float>(I32x16{largest, largest}.highest()));
    }
    for (std::int64_t window = windows; window < padded; ++window) norms[window] = 0.0f;
  }
}

}  // namespace
}  // namespace agnews_fast
