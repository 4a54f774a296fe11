#pragma once

#include "tensors.h"

namespace pyprune::cpu {

void dequantize_gguf(Tensor blocks, int64_t type, Tensor out);

}  // namespace pyprune::cpu
