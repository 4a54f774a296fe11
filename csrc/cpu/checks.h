// What more than one operator of the attention sublayer expects of its arguments.
#pragma once

#include "tensors.h"

namespace pyprune::cpu {

inline Cache cache_of(const Tensor& t, const char* what) {
  STD_TORCH_CHECK(t.is_cpu() && t.dim() == 4 && (t.size(3) <= 1 || t.stride(3) == 1), what,
                  ": a CPU tensor [batch, kv_heads, length, head_dim] with contiguous rows is expected");
  return {static_cast<char*>(t.mutable_data_ptr()), dtype_of(t, what), t.size(0), t.size(1), t.size(2), t.size(3),
          t.stride(0), t.stride(1), t.stride(2)};
}

// Keys or values [kv_heads, tokens, head_dim] as a cache of one sequence.
inline Cache token_cache_of(const Tensor& t, const char* what) {
  STD_TORCH_CHECK(t.is_cpu() && t.dim() == 3 && (t.size(2) <= 1 || t.stride(2) == 1), what,
                  ": a CPU tensor [kv_heads, tokens, head_dim] with contiguous rows is expected");
  return {static_cast<char*>(t.mutable_data_ptr()), dtype_of(t, what), 1, t.size(0), t.size(1), t.size(2), 0, t.stride(0),
          t.stride(1)};
}

inline void check_pair(const Cache& keys, const Cache& values) {
  STD_TORCH_CHECK(keys.batch == values.batch && keys.heads == values.heads && keys.length == values.length &&
                      keys.head_dim == values.head_dim && keys.type == values.type,
                  "v_cache: the shape and dtype of k_cache are expected");
}

// int64 values of this shape, each in [0, limit).
inline const int64_t* check_places(const char* name, const Tensor& places, const std::vector<int64_t>& shape,
                                   int64_t limit) {
  bool good = places.is_cpu() && places.scalar_type() == ScalarType::Long && places.is_contiguous() &&
              places.dim() == int64_t(shape.size());
  for (size_t d = 0; good && d < shape.size(); ++d) good = places.size(d) == shape[d];
  STD_TORCH_CHECK(good, name, ": a contiguous CPU int64 tensor [batch", shape.size() == 2 ? ", tokens" : "",
                  "] is expected");
  const auto* p = static_cast<const int64_t*>(places.const_data_ptr());
  for (int64_t i = 0; i < places.numel(); ++i)
    STD_TORCH_CHECK(0 <= p[i] && p[i] < limit, name, ": ", p[i], " is outside [0, ", limit, ")");
  return p;
}

// cos and sin [positions, head_dim / 2].
inline void check_tables(const Tensor& cos, const Tensor& sin, int64_t half) {
  STD_TORCH_CHECK(cos.is_cpu() && cos.dim() == 2 && cos.size(1) == half && cos.scalar_type() == ScalarType::Float &&
                      cos.is_contiguous() && sin.is_cpu() && sin.dim() == 2 && sin.size(0) == cos.size(0) &&
                      sin.size(1) == half && sin.scalar_type() == ScalarType::Float && sin.is_contiguous(),
                  "cos, sin: contiguous CPU float32 tensors [positions, head_dim / 2] are expected");
}

// The number of query heads of q, k and v weights; their sizes and dtypes checked.
inline int64_t check_heads(const std::array<Const, 3>& weight, int64_t q_rows, int64_t k_rows, int64_t v_rows,
                           const Cache& keys) {
  STD_TORCH_CHECK(keys.head_dim % 2 == 0 && keys.head_dim > 0, "k_cache: an even head_dim is expected");
  const DType type = value_type(weight[0].type);
  STD_TORCH_CHECK(value_type(weight[1].type) == type && value_type(weight[2].type) == type,
                  "k_weight, v_weight: the dtype of q_weight is expected");
  const int64_t heads = q_rows / keys.head_dim, kv_rows = keys.heads * keys.head_dim;
  STD_TORCH_CHECK(q_rows == heads * keys.head_dim && k_rows == kv_rows && v_rows == kv_rows && keys.heads > 0 &&
                      heads % keys.heads == 0,
                  "q_weight, k_weight, v_weight: whole heads of the caches' head_dim are expected");
  return heads;
}

}  // namespace pyprune::cpu
