// The operators that are a projection with something fused around it. Contracts: pyprune/ops/schemas.py.
#include "projections.h"

namespace pyprune::cpu {

namespace {

constexpr int64_t kBlock = 32;  // weight rows a thread takes at a time: one stretch of memory, results in its L1

// For `blocks` of weight rows, calls finish(m, first, count, values) with float32 results of one activation row.
template <class F>
void few_rows(const Kernels& k, const Packed& x, int64_t m_count, const Const& weight, int64_t n, int64_t width,
              const F& finish) {
  parallel((n + kBlock - 1) / kBlock, n * width * size_of(weight.type), [&](int64_t begin, int64_t end) {
    float results[kFewRows * kBlock];
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = b * kBlock, count = std::min(kBlock, n - first);
      k.linear({weight.row(first), weight.type, weight.stride}, count, width, x.data, x.stride, m_count, results, kBlock);
      for (int64_t m = 0; m < m_count; ++m) finish(m, first, count, results + m * kBlock);
    }
  });
}

// (norm) -> projection -> + bias -> + residual, few or many rows; residual may be empty.
void project(const Rows& x, const Const& norm, float eps, const Tensor& weight, const Optional& bias_tensor,
             const Const& residual, const Mut& out) {
  const Kernels& k = kernels();
  const int64_t n = weight.size(0);
  const Const w = matrix(weight, x.width, "weight");
  const Const bias = vector(bias_tensor, n, "bias");
  const auto finish = [&](int64_t m, int64_t first, int64_t count, const float* values) {
    const Const y = residual.data ? Const{residual.at(m * n + first), residual.type} : Const{};
    k.add(values, y.data, y.type, bias.data ? bias.at(first) : nullptr, bias.type, count, out.at(m * n + first), out.type);
  };
  if (x.count <= kFewRows) {
    few_rows(k, pack_rows(k, x, norm, eps, w.type), x.count, w, n, x.width, finish);
    return;
  }
  const Tensor y = matmul(k, float_rows(k, x, norm, eps), weight, w);
  const float* values = static_cast<const float*>(y.const_data_ptr());
  parallel(x.count, x.count * n * 4, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) finish(m, 0, n, values + m * n);
  });
}

}  // namespace

Tensor linear_residual(Tensor x, Tensor weight, Optional bias, Tensor residual, Optional skip, int64_t unit) {
  const Rows rows(x, "x"), base(residual, "residual");
  bool alike = weight.dim() == 2 && base.width == weight.size(0) && residual.dim() == x.dim();
  for (int64_t d = 0; alike && d + 1 < x.dim(); ++d) alike = x.size(d) == residual.size(d);
  STD_TORCH_CHECK(alike, "residual: the rows of x and one column for each row of weight are expected");
  if (skipped(skip, unit)) {
    Tensor same = new_tensor(residual, shape_with_last(residual, base.width), residual.scalar_type());
    return torch::stable::copy_(same, residual);
  }
  const DType type = base.view.type;
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
                    Optional skip, int64_t unit) {
  const Kernels& k = kernels();
  const Rows rows(x, "x");
  const Const scale = vector(norm, rows.width, "norm");
  const Const g = matrix(gate, rows.width, "gate"), u = matrix(up, rows.width, "up");
  const int64_t n = gate.size(0);
  STD_TORCH_CHECK(up.size(0) == n && u.type == g.type, "up: the shape and dtype of gate are expected");
  const Const gb = vector(gate_bias, n, "gate_bias"), ub = vector(up_bias, n, "up_bias");
  STD_TORCH_CHECK(!gb.data || !ub.data || gb.type == ub.type, "up_bias: the dtype of gate_bias is expected");
  const DType bias_type = gb.data ? gb.type : ub.type;
  Tensor result = new_tensor(x, shape_with_last(x, n), x.scalar_type());
  if (skipped(skip, unit)) return torch::stable::zero_(result);
  const Mut out = rows_of(result, n);
  const auto finish = [&](int64_t m, int64_t first, int64_t count, const float* gates, const float* ups) {
    k.silu_mul(gates, ups, gb.data ? gb.at(first) : nullptr, ub.data ? ub.at(first) : nullptr, bias_type, count,
               out.at(m * n + first), out.type);
  };
  if (rows.count <= kFewRows) {
    const Packed packed = pack_rows(k, rows, scale, float(eps), g.type);
    parallel((n + kBlock - 1) / kBlock, 2 * n * rows.width * size_of(g.type), [&](int64_t begin, int64_t end) {
      float gates[kFewRows * kBlock], ups[kFewRows * kBlock];
      for (int64_t b = begin; b < end; ++b) {
        const int64_t first = b * kBlock, count = std::min(kBlock, n - first);
        k.linear({g.row(first), g.type, g.stride}, count, rows.width, packed.data, packed.stride, rows.count, gates, kBlock);
        k.linear({u.row(first), u.type, u.stride}, count, rows.width, packed.data, packed.stride, rows.count, ups, kBlock);
        for (int64_t m = 0; m < rows.count; ++m) finish(m, first, count, gates + m * kBlock, ups + m * kBlock);
      }
    });
    return result;
  }
  const Tensor h = float_rows(k, rows, scale, float(eps));
  const Tensor gate_rows = matmul(k, h, gate, g), up_rows = matmul(k, h, up, u);
  const float* gates = static_cast<const float*>(gate_rows.const_data_ptr());
  const float* ups = static_cast<const float*>(up_rows.const_data_ptr());
  parallel(rows.count, rows.count * n * 8, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) finish(m, 0, n, gates + m * n, ups + m * n);
  });
  return result;
}

}  // namespace pyprune::cpu
