#pragma once

#include "tensors.h"

namespace pyprune::cpu {

Tensor linear_residual(Tensor x, Tensor weight, Optional bias, Tensor residual, Optional skip, int64_t unit);
Tensor norm_gate_up(Tensor x, Tensor norm, double eps, Tensor gate, Tensor up, Optional gate_bias, Optional up_bias,
                    Optional skip, int64_t unit);
Tensor norm_head(Tensor x, Tensor norm, double eps, Tensor weight, Optional bias);
Tensor padded_linear(Tensor x, Tensor weight, Optional bias);

}  // namespace pyprune::cpu
