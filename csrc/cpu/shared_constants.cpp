// What Python plans memory by, through ctypes (pyprune/ops/native.py): sizes that the kernels choose.
#include <cstring>

#include "gemm.h"

namespace pyprune::cpu {
namespace {

struct Constant {
  const char* name;
  int64_t value;
};

// The names are those of CONSTANTS in pyprune/ops/schemas.py.
constexpr Constant kConstants[] = {
    {"SKINNY_ROWS", kSkinnyRows},
    {"KV_SPLIT", Attend::kSplit},
    {"PREFILL_QUERIES", AttendPrefill::kQueries},
    {"SLICE_ELEMENTS", kSliceElements},
    {"SLICE_ROWS", kSliceRows},
};

}  // namespace
}  // namespace pyprune::cpu

extern "C" {

// The constant of this name; -1 for an unknown one.
__attribute__((visibility("default"))) int64_t pyprune_constant(const char* name) {
  for (const auto& constant : pyprune::cpu::kConstants)
    if (!std::strcmp(constant.name, name)) return constant.value;
  return -1;
}

// Bytes of `count` rows of n activations, packed for weights of this type (0 float32, 1 bfloat16, 2 float16) by the
// instruction set in use.
__attribute__((visibility("default"))) int64_t pyprune_packed_bytes(int weight_type, int64_t n, int64_t count) {
  return pyprune::cpu::kernels().packed_bytes(pyprune::cpu::DType(weight_type), n, count);
}

// Whether the instruction set in use multiplies bfloat16 itself.
__attribute__((visibility("default"))) int pyprune_multiplies_bf16() {
  return pyprune::cpu::multiplies_bf16(pyprune::cpu::kernels());
}

}  // extern "C"
