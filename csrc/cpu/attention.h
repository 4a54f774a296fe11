#pragma once

#include "tensors.h"

namespace pyprune::cpu {

Tensor norm_qkv_rope(Tensor x, Tensor norm, double eps, Tensor q_weight, Tensor k_weight, Tensor v_weight, Optional q_bias,
                     Optional k_bias, Optional v_bias, Optional q_norm, Optional k_norm, Tensor cos, Tensor sin,
                     Tensor positions, Tensor k_cache, Tensor v_cache, Optional skip, int64_t unit,
                     Optional slots);
Tensor decode_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor positions, double scale, Optional skip,
                        int64_t unit, Optional first, int64_t window);

}  // namespace pyprune::cpu
