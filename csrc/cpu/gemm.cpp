// What does the GEMMs (more than kSkinnyRows rows) on this processor: our kernels, or which of torch's.
#include "gemm.h"

#include <cmath>
#include <exception>

#include "row_groups.h"

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

// What PYPRUNE_GEMM or `pyprune_gemm_select` asks for.
enum class Choice { automatic, own, torch };

Choice& choice() {
  static Choice chosen = Choice::automatic;
  return chosen;
}

}  // namespace

bool prefers_onednn() {
  static const bool preferred = !is_intel() && onednn_works();
  return preferred;
}

// Measured on an EPYC (Zen 4, 2 cores) only: there a core does 48 to 56 billion products a second of half-precision weights
// with AVX-512 and 104 to 115 with AVX-512-BF16, torch's GEMMs 43 to 55 and about 100, and need their operands copied or
// widened. AMX, AVX2, float32 and Intel's processors stay with torch.
bool has_own_gemm(const Kernels& k, DType type) {
  if (choice() != Choice::automatic) return choice() == Choice::own;
  return value_type(type) != DType::f32 && !std::strncmp(k.name, "avx512", 6) && !is_intel();
}

}  // namespace pyprune::cpu

// For Python, through ctypes.
extern "C" {

// 1 when `name` is auto, own or torch, which is in use from now on; 0 otherwise, and nothing has changed.
__attribute__((visibility("default"))) int pyprune_gemm_select(const char* name) {
  using pyprune::cpu::Choice;
  const char* const names[] = {"auto", "own", "torch"};
  for (int i = 0; i < 3; ++i)
    if (!std::strcmp(name, names[i])) {
      pyprune::cpu::choice() = Choice(i);
      return 1;
    }
  return 0;
}

// Whether our own kernels do the GEMMs with weights of 16 bits a value (`half`: float16, else bfloat16).
__attribute__((visibility("default"))) int pyprune_gemm_is_own(int half) {
  using namespace pyprune::cpu;
  return has_own_gemm(kernels(), half ? DType::f16 : DType::bf16);
}

}  // extern "C"
