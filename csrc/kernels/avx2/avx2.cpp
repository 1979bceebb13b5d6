// AVX2 + FMA. The GEMM adds `depth` vpmaddubsw results in 16 bits (vpaddw runs on other ports) before one
// vpmaddwd + vpaddd widens them, which lifts the peak from 32 MAC/cycle to 51 (depth 4) and 57 (depth 8) on Zen 3:
// per 64 products 1 vpmaddubsw a half (2 a cycle), against 3 vector operations without it.
#include "kernels/avx2/f32x16.h"
#include "kernels/avx2/gemm_s16.h"
#include "kernels/cpu_features.h"
#include "kernels/kernels.h"
#include "kernels/simd/attention_s16.h"
#include "kernels/simd/gemm_epilogue.h"
#include "kernels/simd/gemm_s16.h"
#include "kernels/simd/rows.h"

namespace agnews_fast {
namespace {

alignas(32) const std::int16_t kOnes[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

// One row's 4 activations against 4 x 16 weights, added to (First: set as) the row's two 16-bit sums. In assembly because
// g++ 12 reorders the intrinsics until the 12 sums no longer fit the 16 registers and spill.
template <bool First>
inline __attribute__((always_inline)) void multiply_add(const std::uint8_t* activations, __m256i weights0,
                                                        __m256i weights1, __m256i& sum0, __m256i& sum1) {
  __m256i a, product;
  if constexpr (First) {
    __asm__(
        "vpbroadcastd %[m], %[a]\n\t"
        "vpmaddubsw %[w0], %[a], %[s0]\n\t"
        "vpmaddubsw %[w1], %[a], %[s1]"
        : [s0] "=&x"(sum0), [s1] "=&x"(sum1), [a] "=&x"(a)
        : [m] "m"(*reinterpret_cast<const std::uint8_t (*)[kGroup]>(activations)), [w0] "x"(weights0),
          [w1] "x"(weights1));
    static_cast<void>(product);
  } else {
    __asm__(
        "vpbroadcastd %[m], %[a]\n\t"
        "vpmaddubsw %[w0], %[a], %[p]\n\t"
        "vpmaddubsw %[w1], %[a], %[a]\n\t"
        "vpaddw %[p], %[s0], %[s0]\n\t"
        "vpaddw %[a], %[s1], %[s1]"
        : [s0] "+x"(sum0), [s1] "+x"(sum1), [a] "=&x"(a), [p] "=&x"(product)
        : [m] "m"(*reinterpret_cast<const std::uint8_t (*)[kGroup]>(activations)), [w0] "x"(weights0),
          [w1] "x"(weights1));
  }
}

// Adds a row's 16-bit sums to its 32-bit totals. In assembly because g++ keeps the totals twice, in two places of the
// stack, and stores them in both.
inline __attribute__((always_inline)) void widen_add(__m256i sum, __m256i ones, std::int32_t* total) {
  __asm__(
      "vpmaddwd %[ones], %[s], %[s]\n\t"
      "vpaddd %[t], %[s], %[s]\n\t"
      "vmovdqa %[s], %[t]"
      : [s] "+x"(sum), [t] "+m"(*reinterpret_cast<__m256i*>(total))
      : [ones] "x"(ones));
}

template <int R, int Depth>
inline __attribute__((always_inline)) void products(const std::uint8_t* activations, const std::int8_t* weights,
                                                    std::int64_t k, Prefetch prefetch, std::int32_t (&acc)[R][kPanel]) {
  for (int r = 0; r < R; ++r) {
    for (int half = 0; half < 2; ++half) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(acc[r] + half * 8), _mm256_setzero_si256());
    }
  }
  for (std::int64_t block = 0; block < k; block += kGroup * Depth) {
    if (block % kKBlock == 0) prefetch.block();
    __m256i sum0[R], sum1[R];
#pragma GCC unroll 8
    for (int d = 0; d < Depth; ++d) {
      const __m256i* w = reinterpret_cast<const __m256i*>(weights + (block + d * kGroup) * kPanel);
      const __m256i weights0 = _mm256_load_si256(w), weights1 = _mm256_load_si256(w + 1);
      const std::uint8_t* u = activations + (block + d * kGroup) * R;
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        if (d == 0) {
          multiply_add<true>(u + r * kGroup, weights0, weights1, sum0[r], sum1[r]);
        } else {
          multiply_add<false>(u + r * kGroup, weights0, weights1, sum0[r], sum1[r]);
        }
      }
    }
    const __m256i ones = _mm256_load_si256(reinterpret_cast<const __m256i*>(kOnes));
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      widen_add(sum0[r], ones, acc[r]);
      widen_add(sum1[r], ones, acc[r] + 8);
    }
  }
}

template <int R>
struct GemmKernel {
  static void run(const GemmTile& tile, const PackedWeights& w, const Activation& activation) {
    alignas(64) std::int32_t acc[R][kPanel];
    const std::int8_t* weights = w.data + tile.panel * kPanel * w.k;
    if (w.depth == 8) {
      products<R, 8>(tile.activations, weights, w.k, tile.prefetch, acc);
    } else {
      products<R, 4>(tile.activations, weights, w.k, tile.prefetch, acc);
    }
    gemm_epilogue<R>(tile, w, activation, acc);
  }
};

void gemm(const PackedRows& a, const PackedWeights& w, std::int64_t panel_begin, std::int64_t panel_end,
          Activation activation, float* out, std::int64_t out_stride) {
  // A panel (k * 16 bytes) stays in the first-level cache while the activations stream past it.
  for (std::int64_t panel = panel_begin; panel < panel_end; ++panel) {
    for_each_row_tile<GemmKernel>(a, w, panel, 1, out, out_stride, activation);
  }
}

}  // namespace

extern const Kernels kAvx2Kernels;
const Kernels kAvx2Kernels = {
    "avx2",  cpu_has_avx2, gemm,     quantize_tile, layer_norm,  embed,       project_embedding,
    softmax, transpose,    gemm_f32, quantize_s16,  gemm_s16s32, gemm_s16f32, softmax_s16,
};

}  // namespace agnews_fast
