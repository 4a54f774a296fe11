// Weights in 12 bits and back (bf12.h). Contract: pyprune/ops/schemas.py.
#include "compression.h"

#include <algorithm>
#include <atomic>

#include "gemm.h"

namespace pyprune::cpu {

namespace {

int exponent_of(uint16_t bits) { return bits >> 7 & 0xff; }

// What the exponents of a row of k values make of it.
struct Choice {
  int base;            // of the 15 exponents that most values have
  int64_t exceptions;  // values with another one that is not 0

  Choice(const uint16_t* row, int64_t k) {
    int64_t count[256] = {};
    for (int64_t i = 0; i < k; ++i) ++count[exponent_of(row[i])];
    int64_t inside = 0, most = -1;
    for (int e = 1; e < kExponents; ++e) inside += count[e];
    for (int e = kExponents; e < 256; ++e) {  // the window [e - 14, e]
      inside += count[e];
      if (inside > most) most = inside, base = e - kExponents + 1;
      inside -= count[e - kExponents + 1];
    }
    exceptions = k - count[0] - most;
  }
  bool holds(uint16_t bits) const {
    const int exponent = exponent_of(bits);
    return exponent == 0 || (base <= exponent && exponent < base + kExponents);
  }
};

void compress_row(const uint16_t* row, int64_t k, const Choice& choice, uint8_t* out, int64_t bytes) {
  std::memset(out, 0, bytes);
  const Head head{uint8_t(choice.base), kBf12Mark, uint16_t(choice.exceptions), {}};
  std::memcpy(out, &head, sizeof(head));
  int64_t exceptions = 0;
  for (int64_t first = 0; first < k; first += kGroup) {
    uint8_t* group = out + sizeof(head) + first / kGroup * kGroupBytes;
    for (int i = 0; i < kGroup; ++i) {
      const int place = place_in_group(i);
      uint16_t bits = first + i < k ? row[first + i] : 0;
      if (!choice.holds(bits)) {
        const Exception e{uint16_t(first + i), bits};
        std::memcpy(out + exception_at(k, exceptions++), &e, sizeof(e));
        bits = 0;
      }
      const int code = exponent_of(bits) ? exponent_of(bits) - choice.base : kExponents;
      group[place] = uint8_t((bits >> 8 & 0x80) | (bits & 0x7f));
      group[kGroup + place % 32] |= uint8_t(code << (place < 32 ? 0 : 4));
    }
  }
}

}  // namespace

Tensor compress_bfloat16(Tensor weight) {
  STD_TORCH_CHECK(weight.is_cpu() && weight.dim() == 2 && weight.scalar_type() == ScalarType::BFloat16 &&
                      (weight.size(1) <= 1 || weight.stride(1) == 1) && 0 < weight.size(1) && weight.size(1) <= kMostColumns,
                  "weight: a CPU bfloat16 matrix of 1 to ", kMostColumns, " columns side by side is expected");
  const int64_t n = weight.size(0), k = weight.size(1), stride = weight.stride(0);
  const auto* values = static_cast<const uint16_t*>(weight.const_data_ptr());
  std::atomic<int64_t> most{0};
  parallel(n, n * k * 2, [&](int64_t begin, int64_t end) {
    int64_t mine = 0;
    for (int64_t r = begin; r < end; ++r) mine = std::max(mine, Choice(values + r * stride, k).exceptions);
    for (int64_t seen = most; seen < mine && !most.compare_exchange_weak(seen, mine);) {}
  });
  const int64_t bytes = bf12_row_bytes(k, most);
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
  STD_TORCH_CHECK(compressed_weight.scalar_type() == ScalarType::Byte, "compressed: bytes are expected");
  const Const rows = compressed(compressed_weight, columns, "compressed");
  return decompressed(kernels(), rows, compressed_weight.size(0), columns);
}

}  // namespace pyprune::cpu
