// Between torch tensors (through its stable ABI) and the kernels' plain memory: types, shapes, scratch, threads.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <array>
#include <cstring>
#include <optional>
#include <vector>

#include "compressed_bf16.h"
#include "stages.h"

namespace pyprune::cpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

inline DType dtype_of(const Tensor& t, const char* what) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return DType::f32;
    case ScalarType::BFloat16: return DType::bf16;
    case ScalarType::Half: return DType::f16;
    default: STD_TORCH_CHECK(false, what, ": float32, bfloat16 or float16 is expected"); return DType::f32;
  }
}

// How a matrix of weights is stored: the one place that says which dtype means which format (pyprune/ops/weight_formats.py).
// uint8 is compressed bfloat16.
inline DType stored_as(const Tensor& t, const char* what) {
  return t.scalar_type() == ScalarType::Byte ? DType::compressed_bf16 : dtype_of(t, what);
}

inline ScalarType scalar_of(DType type) {
  return type == DType::f32 ? ScalarType::Float : type == DType::bf16 ? ScalarType::BFloat16 : ScalarType::Half;
}

inline void check_vector(const Tensor& t, int64_t n, const char* what) {
  STD_TORCH_CHECK(t.is_cpu() && t.dim() == 1 && t.size(0) == n && (n == 1 || t.stride(0) == 1), what,
                  ": a contiguous CPU vector of ", n, " values is expected");
}

// A compressed weight [n, bytes of a row] of k columns, as compress_bfloat16 gives it. The heads of the first and the last row are
// looked at, or of all rows.
inline Const compressed_rows(const Tensor& t, int64_t k, const char* what, bool all = false) {
  STD_TORCH_CHECK(t.is_cpu() && t.dim() == 2 && t.stride(1) == 1, what, ": a compressed CPU matrix is expected");
  const Const rows{t.const_data_ptr(), DType::compressed_bf16, t.stride(0)};
  const int64_t n = t.size(0), width = t.size(1);
  for (int64_t r = 0; r < n; r += all ? 1 : std::max<int64_t>(1, n - 1)) {
    Head head{};
    if (width >= int64_t(sizeof(head))) std::memcpy(&head, rows.row(r), sizeof(head));
    STD_TORCH_CHECK(head.mark == kCompressedMark && compressed_row_bytes(head.columns, head.exceptions) <= width, what, ": row ", r, " of ",
                    width, " bytes is not one of compress_bfloat16");
    STD_TORCH_CHECK(head.columns == k, what, ": ", k, " columns are expected, not the ", int64_t(head.columns), " of row ", r);
  }
  return rows;
}

// A weight [n, k]; its rows may lie further apart than k (padded strides).
inline Const matrix(const Tensor& t, int64_t k, const char* what) {
  if (stored_as(t, what) == DType::compressed_bf16) return compressed_rows(t, k, what);
  STD_TORCH_CHECK(t.is_cpu() && t.dim() == 2 && t.size(1) == k && (k <= 1 || t.stride(1) == 1), what, ": a CPU matrix [*, ",
                  k, "] with contiguous rows is expected");
  return {t.const_data_ptr(), dtype_of(t, what), t.stride(0)};
}

// A vector that may be absent: data is null then.
inline Const vector(const Optional& t, int64_t n, const char* what) {
  if (!t.has_value()) return {};
  check_vector(*t, n, what);
  return {t->const_data_ptr(), dtype_of(*t, what), 0};
}

// Activations [..., width] as contiguous rows.
struct Rows {
  Tensor tensor;
  Const view;
  int64_t count, width;

  Matrix matrix() const { return {view, count, width}; }
  Rows(const Tensor& t, const char* what) : tensor(t) {
    STD_TORCH_CHECK(t.is_cpu() && t.dim() >= 1, what, ": a CPU tensor [..., features] is expected");
    if (!t.is_contiguous()) tensor = torch::stable::contiguous(t);
    width = t.size(t.dim() - 1);
    count = 1;
    for (int64_t d = 0; d + 1 < t.dim(); ++d) count *= t.size(d);
    view = {tensor.const_data_ptr(), dtype_of(t, what), width};
  }
};

inline std::vector<int64_t> shape_with_last(const Tensor& t, int64_t last) {
  std::vector<int64_t> shape(t.sizes().begin(), t.sizes().end());
  shape.back() = last;
  return shape;
}

inline Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& shape, ScalarType type) {
  return torch::stable::new_empty(like, shape, type);
}

inline Mut rows_of(const Tensor& t, int64_t width) {
  return {t.mutable_data_ptr(), dtype_of(t, "output"), width};
}

// The skip mask is a bool vector, one flag a sublayer. A set flag turns the operator into nothing.
inline bool skipped(const Optional& mask, int64_t sublayer) {
  if (!mask.has_value()) return false;
  STD_TORCH_CHECK(mask->is_cpu() && mask->scalar_type() == ScalarType::Bool && mask->dim() == 1 && mask->is_contiguous(),
                  "skip: a contiguous CPU bool vector is expected");
  STD_TORCH_CHECK(0 <= sublayer && sublayer < mask->size(0), "sublayer: ", sublayer, " is outside the skip mask of ", mask->size(0));
  return static_cast<const bool*>(mask->const_data_ptr())[sublayer];
}

// Runs f(begin, end) over [0, n) on torch's threads; small work (in bytes touched) stays on this one.
template <class F>
inline void parallel(int64_t n, int64_t bytes, const F& f) {
  if (n <= 0) return;
  if (n == 1 || bytes < 32768) f(int64_t(0), n);
  else torch::stable::parallel_for(0, n, 1, f);
}

// Runs every task of a stage.
template <class Stage>
inline void run(const Stage& stage) {
  parallel(stage.tasks(), stage.bytes(), [&](int64_t begin, int64_t end) {
    if constexpr (kStreams<Stage>)
      for (int64_t task = begin, stop; task < end; task = stop) stage(task, stop = std::min(end, task + stage.together()));
    else
      for (int64_t task = begin; task < end; ++task) stage(task);
  });
}

inline int64_t block_rows(int64_t n) { return block_rows(n, torch::stable::get_num_threads()); }

}  // namespace pyprune::cpu
