// What this CPU and its operating system support.
#pragma once

namespace agnews_fast {

bool cpu_has_avx2();        // AVX2 and FMA
bool cpu_has_avx512vnni();  // AVX-512 F, BW, DQ, VL and VNNI, with AVX2 and FMA

}  // namespace agnews_fast
