// Writes rows of compressed bfloat16 weights (compressed_bf16.h).
#pragma once

#include <cstring>

#include "compressed_bf16.h"

namespace pyprune::cpu {
namespace {

inline int exponent_of(uint16_t bits) { return bits >> 7 & 0xff; }

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

inline void compress_row(const uint16_t* row, int64_t k, const Choice& choice, uint8_t* out, int64_t bytes) {
  std::memset(out, 0, bytes);
  const Head head{uint8_t(choice.base), kCompressedMark, uint16_t(choice.exceptions), uint32_t(k), {}};
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
}  // namespace pyprune::cpu
