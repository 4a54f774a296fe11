// The operators compress_bfloat16 and decompress_bfloat16: the lossless 12-bit code and back (compressed_bf16.h).
#include <algorithm>
#include <atomic>

#include "compressed_bf16_write.h"
#include "gemm.h"

namespace pyprune::cpu {

Tensor compress_bfloat16(Tensor weight) {
  STD_TORCH_CHECK(weight.is_cpu() && weight.dim() == 2 && weight.scalar_type() == ScalarType::BFloat16 &&
                      (weight.size(1) <= 1 || weight.stride(1) == 1) && 0 < weight.size(1) && weight.size(1) <= kMostColumns,
                  "weight: a CPU bfloat16 matrix of 1 to ", kMostColumns, " columns side by side is expected, not ",
                  weight.dim(), " dimensions, the last of ", weight.dim() ? weight.size(weight.dim() - 1) : int64_t(0));
  const int64_t n = weight.size(0), k = weight.size(1), stride = weight.stride(0);
  const auto* values = static_cast<const uint16_t*>(weight.const_data_ptr());
  std::atomic<int64_t> most{0};
  parallel(n, n * k * 2, [&](int64_t begin, int64_t end) {
    int64_t mine = 0;
    for (int64_t r = begin; r < end; ++r) mine = std::max(mine, Choice(values + r * stride, k).exceptions);
    for (int64_t seen = most; seen < mine && !most.compare_exchange_weak(seen, mine);) {}
  });
  const int64_t bytes = compressed_row_bytes(k, most);
  Tensor out = new_tensor(weight, {n, bytes}, ScalarType::Byte);
  auto* rows = static_cast<uint8_t*>(out.mutable_data_ptr());
  parallel(n, n * k * 2, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const uint16_t* row = values + r * stride;
      compress_row(row, k, Choice(row, k), rows + r * bytes, bytes);
    }
  });
  return out;
}

Tensor decompress_bfloat16(Tensor compressed_weight, int64_t columns) {
  STD_TORCH_CHECK(compressed_weight.scalar_type() == ScalarType::Byte, "compressed: bytes (uint8) are expected");
  const Const rows = compressed_rows(compressed_weight, columns, "compressed", true);
  return decompressed(kernels(), rows, compressed_weight.size(0), columns);
}

}  // namespace pyprune::cpu

STABLE_TORCH_LIBRARY_IMPL(pyprune, CPU, m) {
  m.impl("compress_bfloat16", TORCH_BOX(&pyprune::cpu::compress_bfloat16));
  m.impl("decompress_bfloat16", TORCH_BOX(&pyprune::cpu::decompress_bfloat16));
}
