// The CPU kernels, registered under the schemas that pyprune/ops/schemas.py defines.
#include "cpu/attention.h"
#include "cpu/compression.h"
#include "cpu/dequantization.h"
#include "cpu/loss.h"
#include "cpu/projections.h"
#include "cpu/step.h"

STABLE_TORCH_LIBRARY_IMPL(pyprune, CPU, m) {
  m.impl("norm_qkv_rope", TORCH_BOX(&pyprune::cpu::norm_qkv_rope));
  m.impl("decode_attention", TORCH_BOX(&pyprune::cpu::decode_attention));
  m.impl("linear_residual", TORCH_BOX(&pyprune::cpu::linear_residual));
  m.impl("norm_gate_up", TORCH_BOX(&pyprune::cpu::norm_gate_up));
  m.impl("norm_head", TORCH_BOX(&pyprune::cpu::norm_head));
  m.impl("linear_cross_entropy", TORCH_BOX(&pyprune::cpu::linear_cross_entropy));
  m.impl("decode_step", TORCH_BOX(&pyprune::cpu::decode_step));
  m.impl("compress_bfloat16", TORCH_BOX(&pyprune::cpu::compress_bfloat16));
  m.impl("decompress_bfloat16", TORCH_BOX(&pyprune::cpu::decompress_bfloat16));
  m.impl("dequantize_gguf", TORCH_BOX(&pyprune::cpu::dequantize_gguf));
  m.impl("padded_linear", TORCH_BOX(&pyprune::cpu::padded_linear));
}
