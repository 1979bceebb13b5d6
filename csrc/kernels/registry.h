// The instruction sets that were built, and which of them to use.
#pragma once

#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace agnews_fast {

// Every instruction set that was built and that this machine supports, the slowest ("scalar") first.
std::vector<const Kernels*> available_kernels();

// The one called `name`, or the fastest available one if `name` is empty. Throws std::invalid_argument naming the
// available ones if there is no such.
const Kernels& select_kernels(const std::string& name);

}  // namespace agnews_fast
