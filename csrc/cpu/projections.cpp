// The operators that are a projection with something fused around it.
#include "gemm.h"
#include "row_groups.h"

namespace pyprune::cpu {

namespace {

// (norm) -> projection -> + bias -> + residual into `out`, any number of rows; residual may be empty.
void project(const Rows& x, const Const& norm, float eps, const Tensor& weight, const Optional& bias_tensor,
             const Const& residual, const Mut& out) {
  const Kernels& k = kernels();
  const int64_t n = weight.size(0);
  const Const w = matrix(weight, x.width, "weight");
  const Const bias = vector(bias_tensor, n, "bias");
  Project stage{k, {}, x.count, x.width, w, n, block_rows(n), bias, residual, out};
  if (run_packed(stage, x, norm, eps, w.type)) return;
  const Tensor y = matmul(k, float_rows(k, x, norm, eps), weight, w);
  const float* values = static_cast<const float*>(y.const_data_ptr());
  parallel(x.count, x.count * n * 4, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) stage.finish(m, 0, n, values + m * n);
  });
}

}  // namespace

Tensor linear_residual(Tensor x, Tensor weight, Optional bias, Tensor residual, Optional skip, int64_t sublayer) {
  const Rows rows(x, "x"), base(residual, "residual");
  bool alike = weight.dim() == 2 && base.width == weight.size(0) && residual.dim() == x.dim();
  for (int64_t d = 0; alike && d + 1 < x.dim(); ++d) alike = x.size(d) == residual.size(d);
  STD_TORCH_CHECK(alike, "residual: the rows of x and one column for each row of weight are expected");
  if (skipped(skip, sublayer)) {
    Tensor same = new_tensor(residual, shape_with_last(residual, base.width), residual.scalar_type());
    return torch::stable::copy_(same, residual);
  }
  const DType type = base.view.type;
  const int64_t n = weight.size(0);
  matrix(weight, rows.width, "weight");
  const bool plain = !bias.has_value() && type == DType::f32 && rows.view.type == DType::f32;
  if (rows.count > kSkinnyRows && plain && !has_own_gemm(kernels(), DType::f32) && takes_onednn(weight)) {
    const Tensor flat = torch::stable::view(rows.tensor, {rows.count, rows.width});
    const Tensor added = torch::stable::view(base.tensor, {rows.count, n});
    return torch::stable::view(onednn_linear(flat, added, weight, "add"), shape_with_last(residual, n));
  }
  Tensor out = new_tensor(residual, shape_with_last(residual, base.width), scalar_of(type));
  project(rows, {}, 0.0f, weight, bias, base.view, rows_of(out, base.width));
  return out;
}

Tensor padded_linear(Tensor x, Tensor weight, Optional bias) {
  const Rows rows(x, "x");
  STD_TORCH_CHECK(weight.dim() == 2, "weight: a matrix is expected");
  Tensor out = new_tensor(x, shape_with_last(x, weight.size(0)), x.scalar_type());
  project(rows, {}, 0.0f, weight, bias, {}, rows_of(out, weight.size(0)));
  return out;
}

Tensor norm_head(Tensor x, Tensor norm, double eps, Tensor weight, Optional bias) {
  const Rows rows(x, "x");
  STD_TORCH_CHECK(weight.dim() == 2, "weight: a matrix is expected");
  Tensor out = new_tensor(x, shape_with_last(x, weight.size(0)), ScalarType::Float);
  project(rows, vector(norm, rows.width, "norm"), float(eps), weight, bias, {}, rows_of(out, weight.size(0)));
  return out;
}

Tensor norm_gate_up(Tensor x, Tensor norm, double eps, Tensor gate, Tensor up, Optional gate_bias, Optional up_bias,
                    Optional skip, int64_t sublayer) {
  const Kernels& k = kernels();
  const Rows rows(x, "x");
  const Const scale = vector(norm, rows.width, "norm");
  const Const g = matrix(gate, rows.width, "gate"), u = matrix(up, rows.width, "up");
  const int64_t n = gate.size(0);
  STD_TORCH_CHECK(up.size(0) == n && value_type(u.type) == value_type(g.type), "up: the shape and dtype of gate are expected");
  const Const gb = vector(gate_bias, n, "gate_bias"), ub = vector(up_bias, n, "up_bias");
  STD_TORCH_CHECK(!gb.data || !ub.data || gb.type == ub.type, "up_bias: the dtype of gate_bias is expected");
  Tensor result = new_tensor(x, shape_with_last(x, n), x.scalar_type());
  if (skipped(skip, sublayer)) return torch::stable::zero_(result);
  GateUp stage{k, {}, rows.count, rows.width, g, u, n, block_rows(n), gb, ub, rows_of(result, n)};
  if (run_packed(stage, rows, scale, float(eps), g.type)) return result;
  const Tensor h = float_rows(k, rows, scale, float(eps));
  const bool plain = !gb.data && !ub.data && rows.view.type == DType::f32;
  if (plain && takes_onednn(gate) && takes_onednn(up))
    return torch::stable::view(onednn_linear(h, onednn_linear(h, gate, "swish"), up, "mul"), shape_with_last(x, n));
  const Tensor gate_rows = matmul(k, h, gate, g), up_rows = matmul(k, h, up, u);
  const float* gates = static_cast<const float*>(gate_rows.const_data_ptr());
  const float* ups = static_cast<const float*>(up_rows.const_data_ptr());
  parallel(rows.count, rows.count * n * 8, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) stage.finish(m, 0, n, gates + m * n, ups + m * n);
  });
  return result;
}

}  // namespace pyprune::cpu

STABLE_TORCH_LIBRARY_IMPL(pyprune, CPU, m) {
  m.impl("linear_residual", TORCH_BOX(&pyprune::cpu::linear_residual));
  m.impl("norm_gate_up", TORCH_BOX(&pyprune::cpu::norm_gate_up));
  m.impl("norm_head", TORCH_BOX(&pyprune::cpu::norm_head));
  m.impl("padded_linear", TORCH_BOX(&pyprune::cpu::padded_linear));
}
