// The CUDA kernels, registered under the schemas of pyprune/ops/cuda_contracts.py. They have not run on a GPU yet.
#include <cstdlib>
#include <string>

#include "tensors.h"

namespace pyprune::cuda {

namespace {

void set_weight(Arguments& a, int index, const Tensor& weight, const Optional& bias, const char* bias_what, int32_t device) {
  a.weight[index] = weight.const_data_ptr();
  a.stride[index] = weight.stride(0);
  a.bias[index] = vector_data(bias, weight.size(0), weight, device, bias_what, a.bias_is_float[index]);
}

// What all of them share: x, the first weight, and the norm.
Arguments arguments_of(const FewRows& x, const Tensor& weight, const Optional& bias, const Optional& norm, double eps,
                       const char* what, const char* bias_what) {
  check_weight(weight, x.width, x.device, what);
  Arguments a;
  a.weight_type = weight_type(weight, what);
  set_weight(a, 0, weight, bias, bias_what, x.device);
  a.n = int(weight.size(0));
  a.k = int(x.width);
  a.x = x.tensor.const_data_ptr();
  a.x_is_float = is_float(x.tensor, weight, "x");
  a.norm = vector_data(norm, x.width, weight, x.device, "norm", a.norm_is_float);
  a.eps = float(eps);
  return a;
}

Overlap overlap() {
  static const char* const value = std::getenv("PYPRUNE_CUDA_OVERLAP");
  const std::string choice = value && *value ? value : "auto";
  STD_TORCH_CHECK(choice == "auto" || choice == "0" || choice == "1", "PYPRUNE_CUDA_OVERLAP=", choice,
                  ": one of auto, 0, 1 is expected");
  return choice == "auto" ? Overlap::while_capturing : choice == "1" ? Overlap::always : Overlap::never;
}

Tensor run(Arguments& a, const FewRows& x, int matrices, const Tensor& like, ScalarType type) {
  const torch::stable::accelerator::DeviceGuard guard(x.device);
  Tensor out = torch::stable::new_empty(like, x.shape(a.n), type);
  if (x.count == 0 || a.n == 0) return out;
  a.out = out.mutable_data_ptr();
  a.out_is_float = type == ScalarType::Float;
  void* const stream = current_stream(x.device);
  const auto error = static_cast<cudaError_t>(launch_skinny_linear(a, int(x.count), matrices, x.device, stream, overlap()));
  STD_TORCH_CHECK(error == cudaSuccess, "CUDA: ", cudaGetErrorString(error));
  return out;
}

}  // namespace

Tensor cuda_norm_gate_up(Tensor x, Tensor norm, double eps, Tensor gate, Tensor up, Optional gate_bias, Optional up_bias,
                         Optional skip, int64_t unit) {
  const FewRows rows(x, "x");
  Arguments a = arguments_of(rows, gate, gate_bias, norm, eps, "gate", "gate_bias");
  check_weight(up, rows.width, rows.device, "up");
  STD_TORCH_CHECK(up.size(0) == gate.size(0) && up.scalar_type() == gate.scalar_type(),
                  "up: the shape and dtype of gate are expected");
  set_weight(a, 1, up, up_bias, "up_bias", rows.device);
  a.skip = skip_flag(skip, unit, rows.device);
  return run(a, rows, 2, x, x.scalar_type());
}

Tensor cuda_linear_residual(Tensor x, Tensor weight, Optional bias, Tensor residual, Optional skip, int64_t unit) {
  const FewRows rows(x, "x"), base(residual, "residual");
  check_device(residual, rows.device, "residual");
  bool alike = weight.dim() == 2 && base.width == weight.size(0) && residual.dim() == x.dim();
  for (int64_t d = 0; alike && d + 1 < x.dim(); ++d) alike = x.size(d) == residual.size(d);
  STD_TORCH_CHECK(alike, "residual: the rows of x and one column for each row of weight are expected");
  Arguments a = arguments_of(rows, weight, bias, {}, 0.0, "weight", "bias");
  is_float(residual, weight, "residual");
  a.residual = base.tensor.const_data_ptr();
  a.skip = skip_flag(skip, unit, rows.device);
  return run(a, rows, 1, residual, residual.scalar_type());
}

Tensor cuda_linear(Tensor x, Tensor weight, Optional bias, Optional norm, double eps, bool float_out) {
  const FewRows rows(x, "x");
  Arguments a = arguments_of(rows, weight, bias, norm, eps, "weight", "bias");
  return run(a, rows, 1, x, float_out ? ScalarType::Float : x.scalar_type());
}

}  // namespace pyprune::cuda

STABLE_TORCH_LIBRARY_IMPL(pyprune, CUDA, m) {
  m.impl("cuda_norm_gate_up", TORCH_BOX(&pyprune::cuda::cuda_norm_gate_up));
  m.impl("cuda_linear_residual", TORCH_BOX(&pyprune::cuda::cuda_linear_residual));
  m.impl("cuda_linear", TORCH_BOX(&pyprune::cuda::cuda_linear));
}
