// Quantised tensors of GGUF files as floats. The operator dequantize_gguf; formats: gguf_blocks.h.
#include <algorithm>

#include "gguf_blocks.h"
#include "tensors.h"

namespace pyprune::cpu {
namespace {

constexpr int64_t kPiece = 2048;  // values between unpacking and rounding: 8 KB, which stay in the L1 cache

struct Format {
  int64_t type;  // ggml_type
  int values, bytes;
};

template <class Block>
constexpr Format format_of(int64_t type) { return {type, Block::values, Block::bytes}; }

constexpr Format kFormats[] = {
    format_of<Q4_0>(2),  format_of<Q4_1>(3),  format_of<Q5_0>(6),    format_of<Q5_1>(7),   format_of<Q8_0>(8),
    format_of<Q2_K>(10), format_of<Q3_K>(11), format_of<Q4_K>(12),   format_of<Q5_K>(13),  format_of<Q6_K>(14),
    format_of<IQ4_NL>(20), format_of<IQ4_XS>(23),
};

template <class Block>
__attribute__((always_inline)) inline void unpack_all(const uint8_t* blocks, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) Block::unpack(blocks + i * Block::bytes, out + i * Block::values);
}

// No instruction set changes a bit of the result, so the processor's best is taken whatever PYPRUNE_ISA says.
#if defined(__x86_64__) && defined(__GLIBC__)
__attribute__((target_clones("avx2", "default")))
#endif
void unpack(int64_t type, const uint8_t* blocks, int64_t count, float* out) {
  switch (type) {
    case 2: return unpack_all<Q4_0>(blocks, count, out);
    case 3: return unpack_all<Q4_1>(blocks, count, out);
    case 6: return unpack_all<Q5_0>(blocks, count, out);
    case 7: return unpack_all<Q5_1>(blocks, count, out);
    case 8: return unpack_all<Q8_0>(blocks, count, out);
    case 10: return unpack_all<Q2_K>(blocks, count, out);
    case 11: return unpack_all<Q3_K>(blocks, count, out);
    case 12: return unpack_all<Q4_K>(blocks, count, out);
    case 13: return unpack_all<Q5_K>(blocks, count, out);
    case 14: return unpack_all<Q6_K>(blocks, count, out);
    case 20: return unpack_all<IQ4_NL>(blocks, count, out);
    case 23: return unpack_all<IQ4_XS>(blocks, count, out);
  }
}

// Where row `index` of `t` begins, in elements: the rows are counted over all dimensions but the last.
int64_t row_offset(const Tensor& t, int64_t index) {
  int64_t offset = 0;
  for (int64_t d = t.dim() - 2; d >= 0; --d) {
    offset += index % t.size(d) * t.stride(d);
    index /= t.size(d);
  }
  return offset;
}

}  // namespace

void dequantize_gguf(Tensor blocks, int64_t type, Tensor out) {
  const Format* format = std::find_if(std::begin(kFormats), std::end(kFormats), [&](const Format& f) { return f.type == type; });
  STD_TORCH_CHECK(format != std::end(kFormats), "type: ", type,
                  " is not one of Q4_0 to Q5_1 (2, 3, 6, 7), Q8_0 (8), Q2_K to Q6_K (10 to 14), IQ4_NL (20), IQ4_XS (23)");
  STD_TORCH_CHECK(blocks.is_cpu() && blocks.scalar_type() == ScalarType::Byte && blocks.is_contiguous(),
                  "blocks: contiguous bytes (uint8) on a CPU are expected");
  STD_TORCH_CHECK(out.is_cpu() && out.dim() >= 1, "out: a CPU tensor [..., values] is expected");
  const int64_t row = out.size(out.dim() - 1), values = format->values;
  STD_TORCH_CHECK(row % values == 0 && (row <= 1 || out.stride(out.dim() - 1) == 1), "out: rows of whole blocks of ", values,
                  " values side by side are expected, not ", row, " values");
  STD_TORCH_CHECK(blocks.numel() == out.numel() / values * format->bytes, "blocks: ", out.numel() / values * format->bytes,
                  " bytes for ", out.numel(), " values are expected, not ", blocks.numel());
  const DType dtype = dtype_of(out, "out");
  const auto* source = static_cast<const uint8_t*>(blocks.const_data_ptr());
  const Mut whole = {out.mutable_data_ptr(), dtype, 0};
  const int64_t in_row = row / values, most = std::max<int64_t>(1, kPiece / values);
  const auto round = kernels().from_float;
  parallel(out.numel() / values, blocks.numel(), [&](int64_t begin, int64_t end) {
    alignas(64) float piece[kPiece];
    for (int64_t block = begin, stop; block < end; block = stop) {
      const int64_t place = block % in_row;
      stop = std::min({end, block + most, block - place + in_row});
      void* target = whole.at(row_offset(out, block / in_row) + place * values);
      float* floats = dtype == DType::f32 ? static_cast<float*>(target) : piece;
      unpack(type, source + block * format->bytes, stop - block, floats);
      if (dtype != DType::f32) round(piece, (stop - block) * values, target, dtype);
    }
  });
}

}  // namespace pyprune::cpu

STABLE_TORCH_LIBRARY_IMPL(pyprune, CPU, m) {
  m.impl("dequantize_gguf", TORCH_BOX(&pyprune::cpu::dequantize_gguf));
}
