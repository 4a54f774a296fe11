// Dropout's masks by Philox4x32-10 (pyprune/ops/dropout.py says which bits belong to which value); compiled once per
// instruction set. A mask has a bit for each column: bit c % 8 of byte c / 8.
#pragma once

#include "simd.h"

namespace {

// Words of 32 bits, each in a lane of 64 whose upper half means nothing.
#if defined(__AVX512F__) && defined(__AVX512BW__)

struct Words {
  static constexpr int lanes = 8;
  __m512i v;

  static Words all(uint32_t x) { return {_mm512_set1_epi64(int64_t(x))}; }
  static Words from(uint32_t x) { return {_mm512_add_epi64(all(x).v, _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7))}; }
  friend Words operator^(Words a, Words b) { return {_mm512_xor_si512(a.v, b.v)}; }
  Words times(uint32_t factor) const { return {_mm512_mul_epu32(v, all(factor).v)}; }  // all 64 bits of it
  Words upper() const { return {_mm512_srli_epi64(v, 32)}; }
  // A bit for each word: whether its lower, or upper, half is at least `limit`.
  uint32_t lower_half_from(uint32_t limit) const { return from_limit(_mm512_slli_epi64(v, 48), limit); }
  uint32_t upper_half_from(uint32_t limit) const { return from_limit(_mm512_slli_epi64(v, 32), limit); }
  static uint32_t from_limit(__m512i x, uint32_t limit) {
    return _mm512_cmpge_epu64_mask(x, _mm512_set1_epi64(int64_t(uint64_t(limit) << 48)));
  }
};

#elif defined(__AVX2__)

struct Words {
  static constexpr int lanes = 4;
  __m256i v;

  static Words all(uint32_t x) { return {_mm256_set1_epi64x(int64_t(x))}; }
  static Words from(uint32_t x) { return {_mm256_add_epi64(all(x).v, _mm256_setr_epi64x(0, 1, 2, 3))}; }
  friend Words operator^(Words a, Words b) { return {_mm256_xor_si256(a.v, b.v)}; }
  Words times(uint32_t factor) const { return {_mm256_mul_epu32(v, all(factor).v)}; }
  Words upper() const { return {_mm256_srli_epi64(v, 32)}; }
  uint32_t lower_half_from(uint32_t limit) const { return from_limit(v, limit); }
  uint32_t upper_half_from(uint32_t limit) const { return from_limit(_mm256_srli_epi64(v, 16), limit); }
  static uint32_t from_limit(__m256i x, uint32_t limit) {
    const __m256i half = _mm256_and_si256(x, _mm256_set1_epi64x(0xffff));
    return uint32_t(_mm256_movemask_pd(_mm256_castsi256_pd(_mm256_cmpgt_epi64(half, _mm256_set1_epi64x(int64_t(limit) - 1)))));
  }
};

#else

struct Words {
  static constexpr int lanes = 1;
  uint64_t v;

  static Words all(uint32_t x) { return {x}; }
  static Words from(uint32_t x) { return {x}; }
  friend Words operator^(Words a, Words b) { return {a.v ^ b.v}; }
  Words times(uint32_t factor) const { return {(v & 0xffffffff) * factor}; }
  Words upper() const { return {v >> 32}; }
  uint32_t lower_half_from(uint32_t limit) const { return (v & 0xffff) >= limit; }
  uint32_t upper_half_from(uint32_t limit) const { return (v >> 16 & 0xffff) >= limit; }
};

#endif

// The mask of n columns of a row, filled up to whole blocks of 64: 1 where a value stays, for its 16 bits are at least
// `limit`.
void kept_bits(uint64_t seed, int64_t row, int64_t n, uint32_t limit, uint8_t* bits) {
  for (int64_t block = 0; block * 64 < n; ++block, bits += 8) {
    uint32_t kept[8] = {};
    for (int lane = 0; lane < 8; lane += Words::lanes) {
      Words a = Words::from(uint32_t(8 * block + lane)), b = Words::all(uint32_t(row)), c = Words::all(uint32_t(row >> 32)),
            d = Words::all(0);
      uint32_t key = uint32_t(seed), other_key = uint32_t(seed >> 32);
      for (int round = 0; round < 10; ++round) {
        const Words one = a.times(0xD2511F53), other = c.times(0xCD9E8D57);
        a = other.upper() ^ b ^ Words::all(key), b = other;
        c = one.upper() ^ d ^ Words::all(other_key), d = one;
        key += 0x9E3779B9, other_key += 0xBB67AE85;
      }
      const Words word[4] = {a, b, c, d};
      for (int w = 0; w < 4; ++w) {
        kept[2 * w] |= word[w].lower_half_from(limit) << lane;
        kept[2 * w + 1] |= word[w].upper_half_from(limit) << lane;
      }
    }
    for (int i = 0; i < 8; ++i) bits[i] = uint8_t(kept[i]);
  }
}

}  // namespace
