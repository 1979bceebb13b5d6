// AVX-512 with VNNI: vpdpbusd adds four u8 x s8 products straight into 32 bits, so depth does not matter here.
#include "kernels/avx512vnni/f32x16.h"
#include "kernels/avx512vnni/gemm_s16.h"
#include "kernels/cpu_features.h"
#include "kernels/kernels.h"
#include "kernels/simd/attention_s16.h"
#include "kernels/simd/gemm_epilogue.h"
#include "kernels/simd/gemm_s16.h"
#include "kernels/simd/rows.h"
#include "kernels/simd/weight_sums.h"

namespace agnews_fast {
namespace {

// A function of its own: inlined, it kept g++ 12 from unrolling what calls it, and the 24 sums from their registers.
template <int R>
__attribute__((noinline)) void finish_panel(const GemmTile& tile, const PackedWeights& w, Activation activation,
                                            std::int32_t (&acc)[R][kPanel]) {
  for (int r = 0; r < R; ++r) (I32x16::load(acc[r]) + besides_products<R>(tile, w, r)).store(acc[r]);
  add_outliers<R>(tile, w, acc);
  finish_sums<R>(tile, w, activation, acc);
}

// R rows x P panels: with 6 x 4, 24 sums, 4 weights and a broadcast fit the 32 registers, and 24 independent
// vpdpbusd chains hide its latency of 4 to 5 cycles on one or two ports.
template <int R, int P>
inline __attribute__((always_inline)) void panels(const GemmTile& tile, const PackedWeights& w, Activation activation) {
  const std::int64_t panel_size = w.k * kPanel;
  const std::int8_t* weights = w.data + tile.panel * panel_size;
  __m512i sum[P][R];
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) sum[p][r] = _mm512_setzero_si512();
  }
  const std::uint8_t* u = tile.activations;
  Prefetch prefetch = tile.prefetch;
  for (std::int64_t group = 0; group < w.k / kGroup; ++group) {
    if (group % kMaxDepth == 0) prefetch.block();
    __m512i columns[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) columns[p] = _mm512_load_si512(weights + p * panel_size);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      std::int32_t four;
      std::memcpy(&four, u + r * kGroup, sizeof four);
      const __m512i row = _mm512_set1_epi32(four);
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) sum[p][r] = _mm512_dpbusd_epi32(sum[p][r], row, columns[p]);
    }
    weights += kPanel * kGroup;
    u += R * kGroup;
  }
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
    GemmTile one = tile;
    one.panel += p;
    one.out += p * kPanel;
    alignas(64) std::int32_t acc[R][kPanel];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) _mm512_store_si512(acc[r], sum[p][r]);
    finish_panel<R>(one, w, activation, acc);
  }
}

template <int P>
struct Panels {
  template <int R>
  struct Kernel {
    static void run(const GemmTile& tile, const PackedWeights& w, const Activation& activation) {
      panels<R, P>(tile, w, activation);
    }
  };
};

void gemm(const PackedRows& a, const PackedWeights& w, std::int64_t panel_begin, std::int64_t panel_end,
          Activation activation, float* out, std::int64_t out_stride) {
  std::int64_t panel = panel_begin;
  for (; panel + 4 <= panel_end; panel += 4) {
    for_each_row_tile<Panels<4>::Kernel>(a, w, panel, 4, out, out_stride, activation);
  }
  for (; panel < panel_end; ++panel) {
    for_each_row_tile<Panels<1>::Kernel>(a, w, panel, 1, out, out_stride, activation);
  }
}

}  // namespace

extern const Kernels kAvx512VnniKernels;
const Kernels kAvx512VnniKernels = {
    "avx512vnni", cpu_has_avx512vnni, gemm,        nullptr,    quantize_tile, layer_norm,
    embed,        project_embedding,  softmax,     transpose,  gemm_f32,      quantize_s16,
    gemm_s16s32,  gemm_s16f32,        softmax_s16, panel_sums, sum_s8,
};

}  // namespace agnews_fast
