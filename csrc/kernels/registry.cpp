#include "kernels/registry.h"

#include <stdexcept>

namespace agnews_fast {

extern const Kernels kScalarKernels, kAvx2Kernels, kAvx512VnniKernels;

namespace {

// Slowest first. A new instruction set is one line here and one folder.
constexpr const Kernels* kBuilt[] = {
    &kScalarKernels,
#if defined(AGNEWS_FAST_X86_64)
    &kAvx2Kernels,
    &kAvx512VnniKernels,
#endif
};

}  // namespace

std::vector<const Kernels*> available_kernels() {
  std::vector<const Kernels*> found;
  for (const Kernels* kernels : kBuilt) {
    if (kernels->supported()) found.push_back(kernels);
  }
  return found;
}

const Kernels& select_kernels(const std::string& name) {
  const std::vector<const Kernels*> available = available_kernels();
  if (name.empty()) return *available.back();
  std::string names;
  for (const Kernels* kernels : available) {
    if (name == kernels->name) return *kernels;
    names += names.empty() ? kernels->name : std::string(", ") + kernels->name;
  }
  throw std::invalid_argument("instruction set '" + name +
                              "' is unknown or not supported by this CPU; available: " + names);
}

}  // namespace agnews_fast
