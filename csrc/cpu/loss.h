#pragma once

#include "tensors.h"

namespace pyprune::cpu {

Tensor linear_cross_entropy(Tensor x, Tensor weight, Tensor targets, Optional norm, double eps, Optional bias,
                            int64_t ignore_index);

}  // namespace pyprune::cpu
