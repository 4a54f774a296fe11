// Products of more than kSkinnyRows rows: torch's own GEMMs, and what is done to their operands before.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "tensors.h"

namespace pyprune::cpu {

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
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// a times weight^T in the memory of `store`, which has room for it.
inline Tensor mm_into(const Tensor& store, const Tensor& a, const Tensor& weight) {
  Tensor flat = store, part = weight;
  const Tensor out = torch::stable::view(torch::stable::narrow(flat, 0, 0, a.size(0) * weight.size(0)),
                                         {a.size(0), weight.size(0)});
  return call_mm_out(a, torch::stable::transpose(part, 0, 1), out);
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

// A compressed weight as the bfloat16 matrix [n, width] that it stands for.
inline Tensor decompressed(const Kernels& k, const Const& rows, int64_t n, int64_t width) {
  Tensor out = torch::stable::empty({n, width}, ScalarType::BFloat16);
  auto* data = static_cast<char*>(out.mutable_data_ptr());
  parallel(n, n * width * 2, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) k.to_bf16(rows.row(r), width, data + r * width * 2);
  });
  return out;
}

// Whether the instruction set in use multiplies bfloat16 itself: torch's bf16 GEMM has those instructions then, too.
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

// ---- torch's oneDNN kernels ------------------------------------------------------------------------------------------

// x [m, k] times weight^T as torch's compiler calls oneDNN: `mkldnn::_linear_pointwise`, with what is done to each
// element of the product: attr "none" or "swish", or with `other`, "add" or "mul".
inline Tensor onednn_linear(const Tensor& x, const Tensor& weight, const char* attr) {
  using torch::stable::detail::from;
  std::array<StableIValue, 6> stack{from(x), from(weight), from(std::optional<Tensor>()), from(std::string(attr)),
                                    from(std::vector<int64_t>()), from(std::optional<std::string>())};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("mkldnn::_linear_pointwise", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

inline Tensor onednn_linear(const Tensor& x, const Tensor& other, const Tensor& weight, const char* attr) {
  using torch::stable::detail::from;
  std::array<StableIValue, 5> stack{from(x), from(other), from(weight), from(std::optional<Tensor>()),
                                    from(std::string(attr))};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("mkldnn::_linear_pointwise", "binary", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// Whether float32 products go to oneDNN and not to torch's BLAS, which is MKL: that reached 78 to 97 GFLOP/s on a core
// of an EPYC (Zen 4) where oneDNN reached 94 to 106, on SmolLM2's shapes and 4096 x 2048. On Intel's processors MKL stays.
bool prefers_onednn();

// A float32 weight that oneDNN takes as it lies.
inline bool takes_onednn(const Tensor& weight) {
  return weight.scalar_type() == ScalarType::Float && weight.numel() > 0 && weight.is_contiguous() && prefers_onednn();
}

// Weights are widened to float32 this many values at a time, but at least so many rows.
inline constexpr int64_t kSliceElements = int64_t(4) << 20, kSliceRows = 256;

// x [m, k] float32 times weight^T, float32. Half-precision weights are widened a slice at a time, unless the processor
// has instructions for bfloat16 and they are that: torch's bf16 GEMM reached 60 GFLOP/s without them where its float32 GEMM
// reached 210 (Xeon, AVX-512), and 380 with them where float32 reached 150 (EPYC, Zen 4; 2 cores each). torch's float16
// GEMM is the slowest on both.
inline Tensor matmul(const Kernels& k, const Tensor& x, const Tensor& weight, const Const& view) {
  if (view.type == DType::compressed_bf16) {
    const Tensor plain = decompressed(k, view, weight.size(0), x.size(1));
    return matmul(k, x, plain, {plain.const_data_ptr(), DType::bf16, x.size(1)});
  }
  if (view.type == DType::bf16 && multiplies_bf16(k)) return bf16_matmul(k, x, weight);
  if (takes_onednn(weight)) return onednn_linear(x, weight, "none");
  const int64_t rows = x.size(0), n = weight.size(0), width = weight.size(1);
  Tensor out = new_tensor(x, {rows, n}, ScalarType::Float);
  const int64_t slice = view.type == DType::f32 ? n : std::max(kSliceRows, kSliceElements / std::max<int64_t>(1, width));
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
