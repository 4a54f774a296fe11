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

inline ScalarType scalar_of(DType type) {
  return type == DType::f32 ? ScalarType::Float : type == DType::bf16 ? ScalarType::BFloat16 : ScalarType::Half;
}

inline void check_vector(const Tensor& t, int64_t n, const char* what) {
  STD_TORCH_CHECK(t.is_cpu() && t.dim() == 1 && t.size(0) == n && (n == 1 || t.stride(0) == 1), what,
                  ": a contiguous CPU vector of ", n, " values is expected");
}

// A weight [n, k]; its rows may lie further apart than k (padded strides).
inline Const matrix(const Tensor& t, int64_t k, const char* what) {
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

// The skip mask is a bool vector, one flag a unit. A set flag turns the operator into nothing.
inline bool skipped(const Optional& mask, int64_t unit) {
  if (!mask.has_value()) return false;
  STD_TORCH_CHECK(mask->is_cpu() && mask->scalar_type() == ScalarType::Bool && mask->dim() == 1 && mask->is_contiguous(),
                  "skip: a contiguous CPU bool vector is expected");
  STD_TORCH_CHECK(0 <= unit && unit < mask->size(0), "unit: ", unit, " is outside the skip mask of ", mask->size(0));
  return static_cast<const bool*>(mask->const_data_ptr())[unit];
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
    for (int64_t task = begin; task < end; ++task) stage(task);
  });
}

inline const char* pack_rows(const Kernels& k, const Rows& x, const Const& norm, float eps, DType weight_type) {
  Pack pack{k, x.matrix(), norm, eps, weight_type, nullptr};
  pack.data = scratch<0>(pack.packed_bytes());
  run(pack);
  return pack.data;
}

inline int64_t block_rows(int64_t n) { return block_rows(n, torch::stable::get_num_threads()); }

// ---- many rows ------------------------------------------------------------------------------------------------------

// x as float32 [rows, width], RMS-normalised where norm.data is given.
inline Tensor float_rows(const Kernels& k, const Rows& x, const Const& norm, float eps) {
  if (!norm.data && x.view.type == DType::f32) return torch::stable::view(x.tensor, {x.count, x.width});
  Tensor out = new_tensor(x.tensor, {x.count, x.width}, ScalarType::Float);
  float* data = static_cast<float*>(out.mutable_data_ptr());
  parallel(x.count, x.count * x.width * 4, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      const void* row = x.view.row(m);
      if (norm.data)
        k.scale_norm(row, x.view.type, norm.data, norm.type, k.inverse_rms(row, x.view.type, x.width, eps), x.width,
                     data + m * x.width);
      else
        k.to_float(row, x.view.type, x.width, data + m * x.width);
    }
  });
  return out;
}

inline Tensor call_mm_out(const Tensor& a, const Tensor& b, const Tensor& out) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(a), torch::stable::detail::from(b),
                                    torch::stable::detail::from(out)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// Weight rows [begin, end) as float32: a view of a float32 weight, else a converted copy in `store`.
inline Tensor float_weight(const Kernels& k, const Tensor& weight, const Const& view, int64_t begin, int64_t end,
                           Tensor& store) {
  Tensor part = weight;
  part = torch::stable::narrow(part, 0, begin, end - begin);
  if (view.type == DType::f32) return part;
  const int64_t width = weight.size(1);
  Tensor out = torch::stable::narrow(store, 0, 0, end - begin);
  float* data = static_cast<float*>(out.mutable_data_ptr());
  parallel(end - begin, (end - begin) * width * 2, [&](int64_t from, int64_t to) {
    for (int64_t r = from; r < to; ++r) k.to_float(view.row(begin + r), view.type, width, data + r * width);
  });
  return out;
}

// Whether the instruction set in use multiplies bfloat16 itself: torch's bf16 GEMM has the units then, too.
inline bool multiplies_bf16(const Kernels& k) { return std::strstr(k.name, "bf16") || std::strstr(k.name, "amx"); }

// x [m, k] float32 times weight^T, as torch's bf16 GEMM does it: rounded to bfloat16 before and after.
inline Tensor bf16_matmul(const Kernels& k, const Tensor& x, const Tensor& weight) {
  const int64_t rows = x.size(0), width = x.size(1), n = weight.size(0);
  Tensor low = new_tensor(x, {rows, width}, ScalarType::BFloat16), product = new_tensor(x, {rows, n}, ScalarType::BFloat16);
  const auto* from = static_cast<const float*>(x.const_data_ptr());
  auto* to = static_cast<char*>(low.mutable_data_ptr());
  parallel(rows, rows * width * 4, [&](int64_t begin, int64_t end) {
    k.from_float(from + begin * width, (end - begin) * width, to + begin * width * 2, DType::bf16);
  });
  Tensor matrix = weight;
  call_mm_out(low, torch::stable::transpose(matrix, 0, 1), product);
  Tensor out = new_tensor(x, {rows, n}, ScalarType::Float);
  const auto* products = static_cast<const char*>(product.const_data_ptr());
  auto* results = static_cast<float*>(out.mutable_data_ptr());
  parallel(rows, rows * n * 4, [&](int64_t begin, int64_t end) {
    k.to_float(products + begin * n * 2, DType::bf16, (end - begin) * n, results + begin * n);
  });
  return out;
}

// x [m, k] float32 times weight^T, float32. Half-precision weights are widened a slice at a time, unless the processor
// has units for bfloat16 and they are that: torch's bf16 GEMM reached 60 GFLOP/s without them where its float32 GEMM
// reached 210 (Xeon, AVX-512), and 380 with them where float32 reached 150 (EPYC, Zen 4; 2 cores each). torch's float16
// GEMM is the slowest on both.
inline Tensor matmul(const Kernels& k, const Tensor& x, const Tensor& weight, const Const& view) {
  if (view.type == DType::bf16 && multiplies_bf16(k)) return bf16_matmul(k, x, weight);
  const int64_t rows = x.size(0), n = weight.size(0), width = weight.size(1);
  Tensor out = new_tensor(x, {rows, n}, ScalarType::Float);
  const int64_t slice = view.type == DType::f32 ? n : std::max<int64_t>(256, (int64_t(4) << 20) / std::max<int64_t>(1, width));
  Tensor store = view.type == DType::f32 ? x : new_tensor(x, {std::min(slice, n), width}, ScalarType::Float);
  for (int64_t begin = 0; begin < n; begin += slice) {
    const int64_t end = std::min(n, begin + slice);
    Tensor target = out;
    if (slice < n) target = torch::stable::narrow(target, 1, begin, end - begin);
    call_mm_out(x, torch::stable::transpose(float_weight(k, weight, view, begin, end, store), 0, 1), target);
  }
  return out;
}

}  // namespace pyprune::cpu
