#pragma once

#include "tensors.h"

namespace pyprune::cpu {

Tensor decode_step(Tensor tokens, Tensor positions, Tensor embedding, std::vector<Tensor> weights,
                   std::vector<int64_t> layout, std::vector<Tensor> caches, Tensor norm, double eps, Tensor head,
                   Optional head_bias, Tensor cos, Tensor sin, Optional skip);

}  // namespace pyprune::cpu
