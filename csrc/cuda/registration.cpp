// The operators of the CUDA library (pyprune/ops/operators/cuda_*.py).
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
Arguments arguments_of(const SkinnyRows& x, const Tensor& weight, const Optional& bias, const Optional& norm, double eps,
                       const char* what, const char* bias_what) {
  check_weight(weight, x.width, x.device, what);
  Arguments a;
  a.weight_type = weight_type(weight, what);
  set_weight(a, 0, weight, bias, bias_what, x.device);
  a.n = int(weight.size(0));
  a.k = int(x.width);
  a.x = x.tensor.const_data_ptr();
  a.x_stride = int(x.stride);
  a.x_is_float = is_float(x.tensor, weight, "x");
  a.norm = vector_data(norm, x.width, weight, x.device, "norm", a.norm_is_float);
  a.eps = float(eps);
  return a;
}

// Whether this thread records a decode step of the engine, in which nothing writes a weight or a skip mask. In a graph of
// somebody else's a kernel just before may do so.
thread_local bool recording = false;

Overlap overlap() {
  static const char* const value = std::getenv("PYPRUNE_CUDA_OVERLAP");
  const std::string choice = value && *value ? value : "auto";
  STD_TORCH_CHECK(choice == "auto" || choice == "0" || choice == "1", "PYPRUNE_CUDA_OVERLAP=", choice,
                  ": one of auto, 0, 1 is expected");
  if (choice == "1") return Overlap::always;
  return choice == "auto" && recording ? Overlap::while_capturing : Overlap::never;
}

void run(Arguments& a, const SkinnyRows& x, Form form, Tensor& out) {
  if (x.count == 0 || a.n == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(x.device);
  a.out = out.mutable_data_ptr();
  a.out_is_float = out.scalar_type() == ScalarType::Float;
  a.out_stride = out.dim() > 1 ? int(out.stride(out.dim() - 2)) : a.n;
  void* const stream = current_stream(x.device);
  const auto error = static_cast<cudaError_t>(launch_skinny_linear(a, int(x.count), form, x.device, stream, overlap()));
  if (error != cudaSuccess) cudaGetLastError();  // reported here, and not again at an innocent launch
  STD_TORCH_CHECK(error == cudaSuccess, "CUDA: ", cudaGetErrorString(error));
}

// The same with a new output, [..., n] of `type`.
Tensor run(Arguments& a, const SkinnyRows& x, Form form, const Tensor& like, ScalarType type) {
  const torch::stable::accelerator::DeviceGuard guard(x.device);
  // What gate and up make is read again as rows, by the projection down.
  Tensor out = form == Form::gate_up ? empty_rows(like, x.shape(a.n), type) : torch::stable::new_empty(like, x.shape(a.n), type);
  run(a, x, form, out);
  return out;
}

// Query, key or value weight number `section`: as check_weight, of the query weight's type, its rows on 16 bytes.
void set_section(Arguments& a, int section, const Tensor& weight, const Optional& bias, const Tensor& q_weight, int32_t device,
                 const char* what, const char* bias_what) {
  check_weight(weight, q_weight.size(1), device, what);
  STD_TORCH_CHECK(weight.scalar_type() == q_weight.scalar_type(), what, ": the dtype of q_weight is expected");
  Heads& h = a.heads;
  h.weight[section] = weight.const_data_ptr();
  h.stride[section] = weight.stride(0);
  STD_TORCH_CHECK(reinterpret_cast<uint64_t>(h.weight[section]) % kWideBytes == 0 &&
                      h.stride[section] * size_of(a.weight_type) % kWideBytes == 0,
                  what, ": rows that start on ", kWideBytes, " bytes are expected");
  h.bias[section] = vector_data(bias, weight.size(0), weight, device, bias_what, h.bias_is_float[section]);
}

void set_cache(Heads& h, int index, Tensor& cache, const Tensor& weight, int64_t batch, int32_t device, const char* what) {
  check_device(cache, device, what);
  STD_TORCH_CHECK(cache.scalar_type() == weight.scalar_type(), what, ": the dtype of q_weight is expected");
  STD_TORCH_CHECK(cache.dim() == 4 && cache.size(0) >= batch && cache.stride(3) == 1, what, ": [at least ", batch,
                  ", kv heads, length, head size] with contiguous heads is expected");
  h.cache[index] = cache.mutable_data_ptr();
  h.batch_stride[index] = cache.stride(0);
  h.head_stride[index] = cache.stride(1);
  h.row_stride[index] = cache.stride(2);
}

const float* table_data(const Tensor& t, int64_t rows, int64_t half, int32_t device, const char* what) {
  check_device(t, device, what);
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float && t.dim() == 2 && t.size(0) == rows && t.size(1) == half &&
                      (half == 1 || t.stride(1) == 1),
                  what, ": float32 [", rows, ", ", half, "] with contiguous rows is expected");
  return static_cast<const float*>(t.const_data_ptr());
}

// int64 like the first two sizes of x, contiguous (a copy where it is not: `t` keeps it).
const int64_t* index_data(Tensor& t, const Tensor& x, int32_t device, const char* what) {
  check_device(t, device, what);
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Long && t.dim() == 2 && t.size(0) == x.size(0) && t.size(1) == x.size(1),
                  what, ": int64 [", x.size(0), ", ", x.size(1), "] is expected");
  if (!t.is_contiguous()) t = torch::stable::contiguous(t);
  return static_cast<const int64_t*>(t.const_data_ptr());
}

}  // namespace

Tensor cuda_norm_gate_up(Tensor x, Tensor norm, double eps, Tensor gate, Tensor up, Optional gate_bias, Optional up_bias,
                         Optional skip, int64_t sublayer) {
  const SkinnyRows rows(x, "x");
  Arguments a = arguments_of(rows, gate, gate_bias, norm, eps, "gate", "gate_bias");
  check_weight(up, rows.width, rows.device, "up");
  STD_TORCH_CHECK(up.size(0) == gate.size(0) && up.scalar_type() == gate.scalar_type(),
                  "up: the shape and dtype of gate are expected");
  set_weight(a, 1, up, up_bias, "up_bias", rows.device);
  a.skip = skip_flag(skip, sublayer, rows.device);
  return run(a, rows, Form::gate_up, x, x.scalar_type());
}

Tensor cuda_linear_residual(Tensor x, Tensor weight, Optional bias, Tensor residual, Optional skip, int64_t sublayer) {
  const SkinnyRows rows(x, "x");
  SkinnyRows base(residual, "residual");
  base.pack();
  check_device(residual, rows.device, "residual");
  bool alike = weight.dim() == 2 && base.width == weight.size(0) && residual.dim() == x.dim();
  for (int64_t d = 0; alike && d + 1 < x.dim(); ++d) alike = x.size(d) == residual.size(d);
  STD_TORCH_CHECK(alike, "residual: the rows of x and one column for each row of weight are expected");
  Arguments a = arguments_of(rows, weight, bias, {}, 0.0, "weight", "bias");
  is_float(residual, weight, "residual");
  a.residual = base.tensor.const_data_ptr();
  a.skip = skip_flag(skip, sublayer, rows.device);
  return run(a, rows, Form::linear, residual, residual.scalar_type());
}

Tensor cuda_linear(Tensor x, Tensor weight, Optional bias, Optional norm, double eps, bool float_out) {
  const SkinnyRows rows(x, "x");
  Arguments a = arguments_of(rows, weight, bias, norm, eps, "weight", "bias");
  return run(a, rows, Form::linear, x, float_out ? ScalarType::Float : x.scalar_type());
}

Tensor cuda_norm_qkv_rope(Tensor x, Tensor norm, double eps, Tensor q_weight, Tensor k_weight, Tensor v_weight,
                          Optional q_bias, Optional k_bias, Optional v_bias, Tensor cos, Tensor sin, Tensor positions,
                          Tensor k_cache, Tensor v_cache, Optional skip, int64_t sublayer, Optional slots) {
  const SkinnyRows rows(x, "x");
  const int32_t device = rows.device;
  STD_TORCH_CHECK(x.dim() == 3, "x: [batch, tokens, hidden] is expected");
  Arguments a = arguments_of(rows, q_weight, {}, norm, eps, "q_weight", "q_bias");
  a.weight[1] = a.weight[0];
  a.stride[1] = a.stride[0];
  Heads& h = a.heads;
  set_section(a, 0, q_weight, q_bias, q_weight, device, "q_weight", "q_bias");
  set_section(a, 1, k_weight, k_bias, q_weight, device, "k_weight", "k_bias");
  set_section(a, 2, v_weight, v_bias, q_weight, device, "v_weight", "v_bias");
  set_cache(h, 0, k_cache, q_weight, x.size(0), device, "k_cache");
  set_cache(h, 1, v_cache, q_weight, x.size(0), device, "v_cache");
  const int64_t kv_heads = k_cache.size(1), length = k_cache.size(2), head_dim = k_cache.size(3);
  for (int64_t d = 1; d < 4; ++d) STD_TORCH_CHECK(v_cache.size(d) == k_cache.size(d), "v_cache: the shape of k_cache is expected");
  STD_TORCH_CHECK(head_dim > 0 && head_dim % 2 == 0 && q_weight.size(0) % head_dim == 0,
                  "q_weight: whole heads of an even size ", head_dim, " are expected, there are ", q_weight.size(0), " rows");
  STD_TORCH_CHECK(k_weight.size(0) == kv_heads * head_dim && v_weight.size(0) == kv_heads * head_dim, "k_weight, v_weight: ",
                  kv_heads * head_dim, " rows are expected");
  h.half = int(head_dim / 2);
  h.heads = int(q_weight.size(0) / head_dim);
  h.kv_heads = int(kv_heads);
  h.cos = table_data(cos, cos.size(0), h.half, device, "cos");
  h.sin = table_data(sin, cos.size(0), h.half, device, "sin");
  h.cos_stride = cos.stride(0);
  h.sin_stride = sin.stride(0);
  h.positions = index_data(positions, x, device, "positions");
  if (slots.has_value()) h.slots = index_data(*slots, x, device, "slots");
  h.slot_limit = length;
  h.limit = slots.has_value() || cos.size(0) < length ? cos.size(0) : length;
  h.tokens = int(x.size(1));
  a.skip = skip_flag(skip, sublayer, device);
  a.n = (h.heads + 2 * h.kv_heads) * h.half;
  Tensor out = torch::stable::new_empty(x, {x.size(0), x.size(1), h.heads, head_dim}, x.scalar_type());
  run(a, rows, Form::qkv_rope, out);
  return out;
}

}  // namespace pyprune::cuda

// For Python, through ctypes (pyprune/ops/gpu.py): this thread begins (1) or ends (0) to record a decode step.
extern "C" __attribute__((visibility("default"))) void pyprune_cuda_record(int on) { pyprune::cuda::recording = on != 0; }

// Why the kernels cannot run with this machine's driver; nullptr where they can. CUDA's runtime is linked in, and takes a
// driver of its own major version or a later one. The string belongs to the library.
extern "C" __attribute__((visibility("default"))) const char* pyprune_cuda_problem() {
  static const std::string problem = [] {
    int runtime = 0, driver = 0;
    if (cudaRuntimeGetVersion(&runtime) != cudaSuccess || cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0)
      return std::string("no NVIDIA driver answers");
    if (driver / 1000 >= runtime / 1000) return std::string();
    const auto name = [](int version) { return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10); };
    return "it was built with CUDA " + name(runtime) + ", and this driver is for CUDA " + name(driver) + " at most";
  }();
  return problem.empty() ? nullptr : problem.c_str();
}

STABLE_TORCH_LIBRARY_IMPL(pyprune, CUDA, m) {
  m.impl("cuda_norm_gate_up", TORCH_BOX(&pyprune::cuda::cuda_norm_gate_up));
  m.impl("cuda_linear_residual", TORCH_BOX(&pyprune::cuda::cuda_linear_residual));
  m.impl("cuda_linear", TORCH_BOX(&pyprune::cuda::cuda_linear));
  m.impl("cuda_norm_qkv_rope", TORCH_BOX(&pyprune::cuda::cuda_norm_qkv_rope));
}
