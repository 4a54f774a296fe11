// Which of torch's float32 GEMMs this processor is given.
#include "gemm.h"

#include <cmath>
#include <exception>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace pyprune::cpu {

namespace {

bool is_intel() {
#if defined(__x86_64__)
  unsigned a, b, c, d;
  return __get_cpuid(0, &a, &b, &c, &d) && b == signature_INTEL_ebx;
#else
  return true;  // elsewhere nothing was measured, and torch's own choice stays
#endif
}

// The operator is torch's compiler's and no part of its public interface: one that is absent, or has changed, is not used.
bool onednn_works() {
  try {
    const std::vector<int64_t> shape{2, 2};
    const Tensor x = torch::stable::empty(shape, ScalarType::Float);
    auto* values = static_cast<float*>(x.mutable_data_ptr());
    values[0] = 1.0f, values[1] = 2.0f, values[2] = -3.0f, values[3] = 4.0f;
    const auto first = [](const Tensor& t) { return static_cast<const float*>(t.const_data_ptr())[0]; };
    const float product = first(onednn_linear(x, x, "none")), sum = first(onednn_linear(x, x, x, "add"));
    return product == 5.0f && sum == 6.0f && first(onednn_linear(x, x, x, "mul")) == 5.0f &&
           std::abs(first(onednn_linear(x, x, "swish")) - 4.96653575f) < 1e-4f;
  } catch (const std::exception&) {
    return false;
  }
}

}  // namespace

bool prefers_onednn() {
  static const bool preferred = !is_intel() && onednn_works();
  return preferred;
}

}  // namespace pyprune::cpu
