// Lossless compressed bfloat16, 12 bits a weight: the layout. compressed_bf16_write.h writes it, compressed_bf16_row.h reads
// it, pyprune/ops/compressed_bf16.py is the reference.
//
// A bfloat16 has 8 bits of sign and mantissa and 8 of exponent, and the exponents of a weight row are nearly all among 15
// neighbours (of a normal distribution all but about one value in eight thousand). So a row keeps the first 8 bits of each
// value as they are and 4 bits for its exponent: 0 to 14 count from the row's `base`, 15 stands for exponent 0, which is
// zero and the subnormal numbers. A value with any other exponent lies as zero in its place and as an exception at the end.
//
// A row is its head with the first exceptions, then groups of 64 values, the last one filled up with zeros, then the other
// exceptions. A group is 64 bytes of signs and mantissas and 32 of codes, in the order in which unpacking in 128-bit lanes gives
// the values as they were.
#pragma once

#include <cstdint>

namespace pyprune::cpu {
namespace {  // compiled for several instruction sets

constexpr int64_t kGroup = 64, kGroupBytes = 96;
constexpr int kExponents = 15;           // that a row can have besides 0
constexpr int64_t kMostColumns = 65535;  // an exception has 16 bits for its column, a row for their number
constexpr uint8_t kCompressedMark = 0xbf;

struct Exception {
  uint16_t column, bits;
};

constexpr int64_t kInHead = 2;
struct Head {
  uint8_t base, mark;
  uint16_t exceptions;  // all of them, by column
  uint32_t columns;
  Exception first[kInHead];
};
static_assert(sizeof(Head) == 16);

constexpr int64_t groups_bytes(int64_t k) { return (k + kGroup - 1) / kGroup * kGroupBytes; }

// Bytes of a row of k values with so many exceptions, and where number `index` of them lies.
constexpr int64_t compressed_row_bytes(int64_t k, int64_t exceptions) {
  const int64_t behind = exceptions > kInHead ? (exceptions - kInHead) * int64_t(sizeof(Exception)) : 0;
  return int64_t(sizeof(Head)) + groups_bytes(k) + (behind + 15) / 16 * 16;
}
constexpr int64_t exception_at(int64_t k, int64_t index) {
  const int64_t start = index < kInHead ? 8 : int64_t(sizeof(Head)) + groups_bytes(k) - kInHead * int64_t(sizeof(Exception));
  return start + index * int64_t(sizeof(Exception));
}

// Which byte of signs and mantissas is that of value i of a group. Its code lies in byte `place % 32` of the codes, in the
// lower half where place < 32.
constexpr int place_in_group(int i) { return i % 32 / 8 * 16 + i / 32 * 8 + i % 8; }

}  // namespace
}  // namespace pyprune::cpu
