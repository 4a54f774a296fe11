// Between torch tensors (through its stable ABI) and the kernels' plain memory: types, shapes, devices.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "skinny_linear.h"

namespace pyprune::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

inline void check_device(const Tensor& t, int32_t device, const char* what) {
  STD_TORCH_CHECK(t.is_cuda() && t.get_device_index() == device, what, ": a tensor on CUDA device ", device, " is expected");
}

inline DType weight_type(const Tensor& t, const char* what) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return DType::f32;
    case ScalarType::BFloat16: return DType::bf16;
    case ScalarType::Half: return DType::f16;
    default: STD_TORCH_CHECK(false, what, ": float32, bfloat16 or float16 is expected"); return DType::f32;
  }
}

// True for float32; false for the type of `weight`; an error for any other.
inline bool is_float(const Tensor& t, const Tensor& weight, const char* what) {
  const bool wide = t.scalar_type() == ScalarType::Float;
  STD_TORCH_CHECK(wide || t.scalar_type() == weight.scalar_type(), what, ": float32 or the weight's dtype is expected");
  return wide;
}

// A weight [n, k] on `device`; its rows may lie further apart than k (padded strides).
inline void check_weight(const Tensor& t, int64_t k, int32_t device, const char* what) {
  check_device(t, device, what);
  STD_TORCH_CHECK(t.dim() == 2 && t.size(1) == k && (k <= 1 || t.stride(1) == 1), what, ": a matrix [*, ", k,
                  "] with contiguous rows is expected");
  STD_TORCH_CHECK(t.size(0) <= kMostElements && k <= kMostElements, what, ": at most ", kMostElements,
                  " rows and columns are expected");
}

// A vector of `n` values, float32 or of the weight's type, that may be absent (null).
inline const void* vector_data(const Optional& t, int64_t n, const Tensor& weight, int32_t device, const char* what,
                               bool& wide) {
  if (!t.has_value()) return nullptr;
  check_device(*t, device, what);
  STD_TORCH_CHECK(t->dim() == 1 && t->size(0) == n && (n <= 1 || t->stride(0) == 1), what, ": a contiguous vector of ", n,
                  " values is expected");
  wide = is_float(*t, weight, what);
  return t->const_data_ptr();
}

// This sublayer's flag, to be read on the device; null where there is no mask.
inline const bool* skip_flag(const Optional& mask, int64_t sublayer, int32_t device) {
  if (!mask.has_value()) return nullptr;
  check_device(*mask, device, "skip");
  STD_TORCH_CHECK(mask->scalar_type() == ScalarType::Bool && mask->dim() == 1 && mask->is_contiguous(),
                  "skip: a contiguous bool vector is expected");
  STD_TORCH_CHECK(0 <= sublayer && sublayer < mask->size(0), "sublayer: ", sublayer, " is outside the skip mask of ", mask->size(0));
  return static_cast<const bool*>(mask->const_data_ptr()) + sublayer;
}

// Activations [..., width], one or two rows of them (or none), `stride` elements apart, the values of each side by side.
struct SkinnyRows {
  Tensor tensor;
  int64_t count = 1, width, stride;
  int32_t device;

  SkinnyRows(const Tensor& t, const char* what) : tensor(t) {
    STD_TORCH_CHECK(t.is_cuda() && t.dim() >= 1, what, ": a CUDA tensor [..., features] is expected");
    device = t.get_device_index();
    width = stride = t.size(t.dim() - 1);
    for (int64_t d = 0; d + 1 < t.dim(); ++d) {
      count *= t.size(d);
      if (t.size(d) == 2) stride = t.stride(d);  // the one dimension that has rows
    }
    STD_TORCH_CHECK(count <= 2, what, ": at most 2 rows are expected, there are ", count);
    if ((width > 1 && t.stride(t.dim() - 1) != 1) || stride > kMostElements) pack();
  }

  void pack() {
    if (!tensor.is_contiguous()) tensor = torch::stable::contiguous(tensor);
    stride = width;
  }

  std::vector<int64_t> shape(int64_t last) const {
    std::vector<int64_t> sizes(tensor.sizes().begin(), tensor.sizes().end());
    sizes.back() = last;
    return sizes;
  }
};

// As empty_rows of pyprune/strides.py: a new [..., n] like `t`, contiguous where rows of n values start on 16 bytes, else
// with rows that start on 128.
inline Tensor empty_rows(const Tensor& t, std::vector<int64_t> shape, ScalarType type) {
  constexpr int64_t kRowBytes = 128;
  const int64_t n = shape.back(), size = type == ScalarType::Float ? 4 : 2;
  if (n * size % kWideBytes == 0) return torch::stable::new_empty(t, shape, type);
  shape.back() = (n * size + kRowBytes - 1) / kRowBytes * kRowBytes / size;
  Tensor wide = torch::stable::new_empty(t, shape, type);
  return torch::stable::narrow(wide, int64_t(shape.size()) - 1, 0, n);
}

inline void* current_stream(int32_t device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return stream;
}

}  // namespace pyprune::cuda
