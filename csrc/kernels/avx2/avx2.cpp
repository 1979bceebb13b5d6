// AVX2 + FMA. The GEMM adds `depth` vpmaddubsw results in 16 bits (vpaddw runs on other ports) before one
// vpmaddwd + vpaddd widens them, which lifts the peak from 32 MAC/cycle to 51 (depth 4) and 57 (depth 8) on Zen 3:
// per 64 products 1 vpmaddubsw a half (2 a cycle), against 3 vector operations without it. Where the norms allow it, it
// adds kLongDepth of them: 8 % faster.
#include "kernels/avx2/f32x16.h"
#include "kernels/avx2/gemm_s16.h"
#include "kernels/avx2/long_windows.h"
#include "kernels/avx2/multiply_add.h"
#include "kernels/cpu_features.h"
#include "kernels/kernels.h"
#include "kernels/simd/attention_s16.h"
#include "kernels/simd/gemm_epilogue.h"
#include "kernels/simd/gemm_s16.h"
#include "kernels/simd/rows.h"
#include "kernels/simd/weight_sums.h"

namespace agnews_fast {
namespace {

alignas(32) const std::int16_t kOnes[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

template <int R>
inline __attribute__((always_inline)) void widen(const __m256i (&sum)[R][2], std::int32_t (&acc)[R][kPanel]) {
  const __m256i ones = _mm256_load_si256(reinterpret_cast<const __m256i*>(kOnes));
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    widen_add(sum[r][0], ones, acc[r]);
    widen_add(sum[r][1], ones, acc[r] + 8);
  }
}

// Adds the products of `blocks` times kKBlock. A window, which is widened at its end, has `Groups` groups a step and
// `Steps` steps.
template <int R, int Groups, int Steps>
inline __attribute__((always_inline)) void multiply_add_windows(const std::uint8_t* activations,
                                                                const std::int8_t* weights, std::int64_t blocks,
                                                                Prefetch& prefetch, std::int32_t (&acc)[R][kPanel]) {
  constexpr std::int64_t kStep = kGroup * Groups;
  for (std::int64_t k = 0; k < blocks * kKBlock;) {
    __m256i sum[R][2];
    if (k % kKBlock == 0) prefetch.block();
    multiply_add_groups<R, Groups, true, (Steps > 1)>(activations + k * R, weights + k * kPanel, sum);
    k += kStep;
    for (int step = 1; step < Steps; ++step, k += kStep) {
      prefetch.block();
      multiply_add_groups<R, Groups, false, true>(activations + k * R, weights + k * kPanel, sum);
    }
    widen<R>(sum, acc);
  }
}

template <int R>
struct GemmKernel {
  static void run(const GemmTile& tile, const PackedWeights& w, const Activation& activation) {
    alignas(64) std::int32_t acc[R][kPanel];
    // Before the products, which hide that vectors are stored here, changed in single lanes, and loaded again: 0.7 %.
    for (int r = 0; r < R; ++r) besides_products<R>(tile, w, r).store(acc[r]);
    add_outliers<R>(tile, w, acc);
    const std::uint8_t* activations = tile.activations;
    const std::int8_t* weights = w.data + tile.panel * kPanel * w.k;
    const std::int64_t blocks = w.k / kKBlock, windows = long_windows(w.k);
    Prefetch prefetch = tile.prefetch;
    if (w.depth == kMaxDepth) {
      constexpr int kSteps = kLongDepth / kMaxDepth;
      const bool fit = tile.window_norm != nullptr && w.window_norm != nullptr &&
                       fit_long_windows(tile.window_norm, w.window_norm + tile.panel * windows, windows);
      const std::int64_t in_long = fit ? blocks / kSteps * kSteps : 0;
      multiply_add_windows<R, kMaxDepth, kSteps>(activations, weights, in_long, prefetch, acc);
      multiply_add_windows<R, kMaxDepth, 1>(activations + in_long * kKBlock * R, weights + in_long * kKBlock * kPanel,
                                            blocks - in_long, prefetch, acc);
    } else {
      multiply_add_windows<R, 4, 1>(activations, weights, blocks, prefetch, acc);
    }
    finish_sums<R>(tile, w, activation, acc);
  }
};

void gemm(const PackedRows& a, const PackedWeights& w, std::int64_t panel_begin, std::int64_t panel_end,
          Activation activation, float* out, std::int64_t out_stride) {
  // A panel (k * 16 bytes) stays in the first-level cache while the activations stream past it.
  for (std::int64_t panel = panel_begin; panel < panel_end; ++panel) {
    for_each_row_tile<GemmKernel>(a, w, panel, 1, out, out_stride, activation);
  }
}

void quantize_tile_and_norms(const float* x, std::int64_t stride, std::int64_t rows, const Quantization& q,
                             std::uint8_t* tile, std::int16_t* wide, float* scale, std::int32_t* zero_point,
                             float* window_norm) {
  quantize_tile(x, stride, rows, q, tile, wide, scale, zero_point, nullptr);
  if (window_norm != nullptr) activation_norms(tile, rows, q.k, q.levels, window_norm);
}

}  // namespace

extern const Kernels kAvx2Kernels;
const Kernels kAvx2Kernels = {
    "avx2",
    cpu_has_avx2,
    gemm,
    weight_norms,
    quantize_tile_and_norms,
    layer_norm,
    embed,
    project_embedding,
    softmax,
    transpose,
    gemm_f32,
    quantize_s16,
    gemm_s16s32,
    gemm_s16f32,
    softmax_s16,
    panel_sums,
    sum_s8,
};

}  // namespace agnews_fast
