// The blocks of quantised tensors in GGUF files (llama.cpp's ggml-common.h has the layouts): one struct a type, `values` values
// in `bytes` bytes. Every product and every sum is rounded on its own, in the order of the formula beside it, as NumPy does
// in the `gguf` package: this is compiled without contraction to FMA.
#pragma once

#include <cstdint>
#include <cstring>

#include "float16.h"

#define GGUF_INLINE __attribute__((always_inline)) static inline

namespace pyprune::cpu {
namespace {

GGUF_INLINE float half_at(const uint8_t* p) {
  f16 half;
  std::memcpy(&half.bits, p, 2);
  return to_float(half);
}

// 32 values of 4 bits: the low ones of 16 bytes, then the high ones.
template <class F>
GGUF_INLINE void nibbles(const uint8_t* __restrict q, float* __restrict out, const F& f) {
  for (int i = 0; i < 16; ++i) out[i] = f(q[i] & 15);
  for (int i = 0; i < 16; ++i) out[16 + i] = f(q[i] >> 4);
}

// 32 values of 5 bits: as `nibbles`, their fifth bits in 4 bytes.
template <class F>
GGUF_INLINE void nibbles_and_bits(const uint8_t* __restrict q, const uint8_t* high, float* __restrict out, const F& f) {
  uint32_t bits;
  std::memcpy(&bits, high, 4);
  for (int i = 0; i < 16; ++i) out[i] = f((q[i] & 15) | int(bits >> i & 1) << 4);
  for (int i = 0; i < 16; ++i) out[16 + i] = f((q[i] >> 4) | int(bits >> (16 + i) & 1) << 4);
}

struct Q4_0 {  // d (q - 8)
  static constexpr int values = 32, bytes = 18;
  GGUF_INLINE void unpack(const uint8_t* p, float* out) {
    const float d = half_at(p);
    nibbles(p + 2, out, [&](int q) { return d * float(q - 8); });
  }
};

struct Q4_1 {  // d q + m
  static constexpr int values = 32, bytes = 20;
  GGUF_INLINE void unpack(const uint8_t* p, float* out) {
    const float d = half_at(p), m = half_at(p + 2);
    nibbles(p + 4, out, [&](int q) { return d * float(q) + m; });
  }
};

struct Q5_0 {  // d (q - 16)
  static constexpr int values = 32, bytes = 22;
  GGUF_INLINE void unpack(const uint8_t* p, float* out) {
    const float d = half_at(p);
    nibbles_and_bits(p + 6, p + 2, out, [&](int q) { return d * float(q - 16); });
  }
};

struct Q5_1 {  // d q + m
  static constexpr int values = 32, bytes = 24;
  GGUF_INLINE void unpack(const uint8_t* p, float* out) {
    const float d = half_at(p), m = half_at(p + 2);
    nibbles_and_bits(p + 8, p + 4, out, [&](int q) { return d * float(q) + m; });
  }
};

struct Q8_0 {  // d q
  static constexpr int values = 32, bytes = 34;
  GGUF_INLINE void unpack(const uint8_t* __restrict p, float* __restrict out) {
    const float d = half_at(p);
    for (int i = 0; i < 32; ++i) out[i] = float(int8_t(p[2 + i])) * d;
  }
};

// Super-blocks of 256 values: sub-blocks of 16 or 32, each with a scale of its own, itself quantised.

struct Q2_K {  // (d s) q - (dmin m), s and m of 4 bits for each 16 values
  static constexpr int values = 256, bytes = 84;
  GGUF_INLINE void unpack(const uint8_t* __restrict p, float* __restrict out) {
    const uint8_t *scales = p, *qs = p + 16;
    const float d = half_at(p + 80), dmin = half_at(p + 82);
    for (int sub = 0; sub < 16; ++sub) {
      const float scale = d * float(scales[sub] & 15), least = dmin * float(scales[sub] >> 4);
      const uint8_t* q = qs + sub / 8 * 32 + sub % 2 * 16;
      const int shift = sub % 8 / 2 * 2;
      for (int i = 0; i < 16; ++i) out[16 * sub + i] = scale * float(q[i] >> shift & 3) - least;
    }
  }
};

struct Q3_K {  // (d (s - 32)) (q - 4), s of 6 bits for each 16 values; q's third bit lies apart
  static constexpr int values = 256, bytes = 110;
  GGUF_INLINE void unpack(const uint8_t* __restrict p, float* __restrict out) {
    const uint8_t *high = p, *qs = p + 32, *scales = p + 96;
    const float d = half_at(p + 108);
    for (int sub = 0; sub < 16; ++sub) {
      const int low = sub < 8 ? scales[sub] & 15 : scales[sub - 8] >> 4;
      const int s = low | (scales[8 + sub % 4] >> sub / 4 * 2 & 3) << 4;
      const float scale = d * float(s - 32);
      const uint8_t *q = qs + sub / 8 * 32 + sub % 2 * 16, *h = high + sub % 2 * 16;
      const int shift = sub % 8 / 2 * 2, bit = sub / 2;
      for (int i = 0; i < 16; ++i) out[16 * sub + i] = scale * float(((q[i] >> shift & 3) | (h[i] >> bit & 1) << 2) - 4);
    }
  }
};

// The scale and the minimum, of 6 bits each, of sub-block `sub` of 8: 12 bytes hold them for Q4_K and Q5_K.
GGUF_INLINE int scale_of(const uint8_t* p, int sub) {
  return sub < 4 ? p[sub] & 63 : (p[4 + sub] & 15) | (p[sub - 4] >> 2 & 48);
}
GGUF_INLINE int minimum_of(const uint8_t* p, int sub) {
  return sub < 4 ? p[4 + sub] & 63 : p[4 + sub] >> 4 | (p[sub] >> 2 & 48);
}

struct Q4_K {  // (d s) q - (dmin m)
  static constexpr int values = 256, bytes = 144;
  GGUF_INLINE void unpack(const uint8_t* __restrict p, float* __restrict out) {
    const uint8_t *scales = p + 4, *qs = p + 16;
    const float d = half_at(p), dmin = half_at(p + 2);
    for (int sub = 0; sub < 8; ++sub) {
      const float scale = d * float(scale_of(scales, sub)), least = dmin * float(minimum_of(scales, sub));
      const uint8_t* q = qs + sub / 2 * 32;
      const int shift = sub % 2 * 4;
      for (int i = 0; i < 32; ++i) out[32 * sub + i] = scale * float(q[i] >> shift & 15) - least;
    }
  }
};

struct Q5_K {  // (d s) q - (dmin m); q's fifth bit lies apart
  static constexpr int values = 256, bytes = 176;
  GGUF_INLINE void unpack(const uint8_t* __restrict p, float* __restrict out) {
    const uint8_t *scales = p + 4, *high = p + 16, *qs = p + 48;
    const float d = half_at(p), dmin = half_at(p + 2);
    for (int sub = 0; sub < 8; ++sub) {
      const float scale = d * float(scale_of(scales, sub)), least = dmin * float(minimum_of(scales, sub));
      const uint8_t* q = qs + sub / 2 * 32;
      const int shift = sub % 2 * 4;
      for (int i = 0; i < 32; ++i)
        out[32 * sub + i] = scale * float((q[i] >> shift & 15) | (high[i] >> sub & 1) << 4) - least;
    }
  }
};

struct Q6_K {  // (d s) (q - 32), s an int8 for each 16 values; q's upper two bits lie apart
  static constexpr int values = 256, bytes = 210;
  GGUF_INLINE void unpack(const uint8_t* __restrict p, float* __restrict out) {
    const uint8_t *low = p, *high = p + 128, *scales = p + 192;
    const float d = half_at(p + 208);
    for (int sub = 0; sub < 16; ++sub) {
      const float scale = d * float(int8_t(scales[sub]));
      const int group = sub / 2 % 4;  // of 32 values, in half sub / 8
      const uint8_t *l = low + sub / 8 * 64 + group % 2 * 32 + sub % 2 * 16, *h = high + sub / 8 * 32 + sub % 2 * 16;
      const int low_shift = group / 2 * 4, high_shift = group * 2;
      for (int i = 0; i < 16; ++i)
        out[16 * sub + i] = scale * float(((l[i] >> low_shift & 15) | (h[i] >> high_shift & 3) << 4) - 32);
    }
  }
};

// The 16 values that the codes of IQ4 stand for.
constexpr float kIQ4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

struct IQ4_NL {  // d value(q)
  static constexpr int values = 32, bytes = 18;
  GGUF_INLINE void unpack(const uint8_t* p, float* out) {
    const float d = half_at(p);
    nibbles(p + 2, out, [&](int q) { return d * kIQ4[q]; });
  }
};

struct IQ4_XS {  // (d (s - 32)) value(q), s of 6 bits for each 32 values
  static constexpr int values = 256, bytes = 136;
  GGUF_INLINE void unpack(const uint8_t* p, float* out) {
    const float d = half_at(p);
    uint16_t high;
    std::memcpy(&high, p + 2, 2);
    for (int sub = 0; sub < 8; ++sub) {
      const int s = (p[4 + sub / 2] >> sub % 2 * 4 & 15) | (high >> 2 * sub & 3) << 4;
      const float scale = d * float(s - 32);
      nibbles(p + 8 + 16 * sub, out + 32 * sub, [&](int q) { return scale * kIQ4[q]; });
    }
  }
};

}  // namespace
}  // namespace pyprune::cpu
