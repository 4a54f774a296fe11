// Rows of compressed bfloat16 weights (compressed_bf16.h), read 64 values at a time with the instructions at hand.
#pragma once

#include <cstring>

#include "compressed_bf16.h"
#include "repeat.h"
#include "simd.h"

namespace {

using pyprune::cpu::kGroup;
using pyprune::cpu::kGroupBytes;

struct compressed_bf16 { uint8_t byte; };  // of a row; a row's length in these is its stride

// bfloat16 values side by side.
#if defined(__AVX512F__) && defined(__AVX512BW__)
using Bits = __m512i;
inline Bits load_bits(const bf16* p) { return _mm512_loadu_si512(p); }
inline void store(Bits bits, bf16* p) { _mm512_storeu_si512(p, bits); }
#elif defined(__AVX2__)
using Bits = __m256i;
inline Bits load_bits(const bf16* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline void store(Bits bits, bf16* p) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), bits); }
#else
struct Bits { bf16 values[16]; };
inline Bits load_bits(const bf16* p) {
  Bits bits;
  std::memcpy(&bits, p, sizeof(bits));
  return bits;
}
inline void store(const Bits& bits, bf16* p) { std::memcpy(p, &bits, sizeof(bits)); }
#endif
constexpr int kInBits = sizeof(Bits) / 2, kParts = kGroup / kInBits;

// A group; one vector at a time, so that they can stay in registers.
ALWAYS_INLINE void store(const Bits (&bits)[kParts], bf16* p) {
  repeat<kParts>([&](auto part) ALWAYS_INLINE_LAMBDA { store(bits[part], p + part * kInBits); });
}

// A row's exponents by code, as the two bytes of a bfloat16 have them: seven bits in the upper one, one in the lower.
class Exponents {
 public:
  Exponents() = default;
  explicit Exponents(uint8_t base) {
#if defined(__AVX2__)
    const __m128i number = _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 0);
    const __m128i not_zero = _mm_setr_epi8(-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0);
    const __m128i exponent = _mm_and_si128(_mm_add_epi8(number, _mm_set1_epi8(char(base))), not_zero);
    upper_ = broadcast(_mm_and_si128(_mm_srli_epi16(exponent, 1), _mm_set1_epi8(0x7f)));
    lower_ = broadcast(_mm_and_si128(_mm_slli_epi16(exponent, 7), _mm_set1_epi8(char(0x80))));
#else
    for (int code = 0; code < 16; ++code) {
      const int exponent = code < pyprune::cpu::kExponents ? base + code : 0;
      upper_.bytes[code] = uint8_t(exponent >> 1);
      lower_.bytes[code] = uint8_t((exponent & 1) << 7);
    }
#endif
  }

  // A group's values as they were.
  ALWAYS_INLINE void read(const uint8_t* group, Bits (&out)[kParts]) const {
#if defined(__AVX512F__) && defined(__AVX512BW__)
    const __m512i kept = _mm512_loadu_si512(group);
    const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(group + kGroup));
    const __m512i codes = _mm512_and_si512(
        _mm512_inserti64x4(_mm512_castsi256_si512(pairs), _mm256_srli_epi16(pairs, 4), 1), _mm512_set1_epi8(15));
    constexpr int and_or = 0xea;  // (a & b) | c
    const __m512i upper =
        _mm512_ternarylogic_epi32(kept, _mm512_set1_epi8(char(0x80)), _mm512_shuffle_epi8(upper_, codes), and_or);
    const __m512i lower =
        _mm512_ternarylogic_epi32(kept, _mm512_set1_epi8(0x7f), _mm512_shuffle_epi8(lower_, codes), and_or);
    out[0] = _mm512_unpacklo_epi8(lower, upper);
    out[1] = _mm512_unpackhi_epi8(lower, upper);
#elif defined(__AVX2__)
    const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(group + kGroup));
    repeat<2>([&](auto half) ALWAYS_INLINE_LAMBDA {
      const __m256i kept = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(group + 32 * half));
      const __m256i codes = _mm256_and_si256(half ? _mm256_srli_epi16(pairs, 4) : pairs, _mm256_set1_epi8(15));
      const __m256i upper = _mm256_or_si256(_mm256_and_si256(kept, _mm256_set1_epi8(char(0x80))),
                                            _mm256_shuffle_epi8(upper_, codes));
      const __m256i lower = _mm256_or_si256(_mm256_and_si256(kept, _mm256_set1_epi8(0x7f)),
                                            _mm256_shuffle_epi8(lower_, codes));
      out[half] = _mm256_unpacklo_epi8(lower, upper);
      out[2 + half] = _mm256_unpackhi_epi8(lower, upper);
    });
#else
    for (int i = 0; i < kGroup; ++i) {
      const int place = pyprune::cpu::place_in_group(i);
      const int code = group[kGroup + place % 32] >> (place < 32 ? 0 : 4) & 15;
      const int upper = (group[place] & 0x80) | upper_.bytes[code], lower = (group[place] & 0x7f) | lower_.bytes[code];
      out[i / kInBits].values[i % kInBits].bits = uint16_t(upper << 8 | lower);
    }
#endif
  }

 private:
#if defined(__AVX512F__) && defined(__AVX512BW__)
  using Table = __m512i;
  static Table broadcast(__m128i bytes) { return _mm512_broadcast_i32x4(bytes); }
#elif defined(__AVX2__)
  using Table = __m256i;
  static Table broadcast(__m128i bytes) { return _mm256_broadcastsi128_si256(bytes); }
#else
  struct Table { uint8_t bytes[16]; };
#endif
  Table upper_, lower_;
};

// The exceptions of a row, in the order of their columns.
class Exceptions {
 public:
  Exceptions() = default;
  Exceptions(const uint8_t* row, int64_t k, int64_t count) : row_(row), k_(k), count_(count) {
    if (count) look();
  }
  bool before(int64_t column) const { return column_ < column; }
  // Puts those of a group in their place; `first` is its first column. Out of line: few groups have any.
  __attribute__((noinline)) void put(int64_t first, bf16* values) {
    for (; column_ < first + kGroup; ++next_, look())
      if (column_ >= first) values[column_ - first].bits = bits_;
  }

 private:
  void look() {
    pyprune::cpu::Exception e{};
    if (next_ < count_) std::memcpy(&e, row_ + pyprune::cpu::exception_at(k_, next_), sizeof(e));
    column_ = next_ < count_ ? e.column : INT64_MAX;
    bits_ = e.bits;
  }
  const uint8_t* row_ = nullptr;
  int64_t k_ = 0, count_ = 0, next_ = 0, column_ = INT64_MAX;
  uint16_t bits_ = 0;
};

struct CompressedRow {
  const uint8_t* groups;
  Exponents exponents;
  Exceptions exceptions;

  CompressedRow() = default;
  CompressedRow(const void* row, int64_t k) {
    uint32_t head;  // base, mark and number of exceptions
    std::memcpy(&head, row, sizeof(head));
    const auto* bytes = static_cast<const uint8_t*>(row);
    groups = bytes + sizeof(pyprune::cpu::Head);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    exponents = Exponents(uint8_t(head));
    exceptions = Exceptions(bytes, k, head >> 16);
#else
    exponents = Exponents(uint8_t(head >> 24));
    exceptions = Exceptions(bytes, k, head & 0xffff);
#endif
  }

  // The group that begins with column `first`; groups are read in order.
  ALWAYS_INLINE void read(int64_t first, Bits (&out)[kParts]) {
    exponents.read(groups + first / kGroup * kGroupBytes, out);
    if (__builtin_expect(exceptions.before(first + kGroup), 0)) {
      bf16 values[kGroup];
      store(out, values);
      exceptions.put(first, values);
      repeat<kParts>([&](auto part) ALWAYS_INLINE_LAMBDA { out[part] = load_bits(values + part * kInBits); });
    }
  }
};

}  // namespace
