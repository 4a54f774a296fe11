// bfloat16 and IEEE half as storage, converted one value at a time. Round to nearest even, NaN stays NaN.
#pragma once

#include <cstdint>
#include <cstring>

namespace {

struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

inline float as_float(uint32_t bits) { float value; std::memcpy(&value, &bits, 4); return value; }
inline uint32_t as_bits(float value) { uint32_t bits; std::memcpy(&bits, &value, 4); return bits; }

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return as_float(uint32_t(x.bits) << 16); }
inline float to_float(f16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16;
  const uint32_t magnitude = x.bits & 0x7fff;
  if (magnitude >= 0x7c00) return as_float(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  if (magnitude >= 0x0400) return as_float(sign | ((magnitude << 13) + 0x38000000));
  const float subnormal = float(magnitude) * 5.9604644775390625e-8f;  // 2^-24
  return sign ? -subnormal : subnormal;
}

inline void from_float(float x, float& out) { out = x; }
inline void from_float(float x, bf16& out) {
  const uint32_t bits = as_bits(x);
  if ((bits & 0x7fffffff) > 0x7f800000) { out.bits = uint16_t(bits >> 16 | 0x40); return; }
  out.bits = uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline void from_float(float x, f16& out) {
  const uint32_t bits = as_bits(x);
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) { out.bits = uint16_t(sign | 0x7e00); return; }
  if (magnitude >= 0x477ff000) { out.bits = uint16_t(sign | 0x7c00); return; }  // rounds to infinity
  if (magnitude < 0x38800000) {  // subnormal: adding 0.5 aligns its last bit to 2^-24 and rounds
    out.bits = uint16_t(sign | (as_bits(as_float(magnitude) + 0.5f) - 0x3f000000));
    return;
  }
  out.bits = uint16_t(sign | ((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13));
}

}  // namespace
