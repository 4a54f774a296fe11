#pragma once

#include "tensors.h"

namespace pyprune::cpu {

Tensor compress_bfloat16(Tensor weight);
Tensor decompress_bfloat16(Tensor compressed, int64_t columns);

}  // namespace pyprune::cpu
