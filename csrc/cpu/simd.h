// A vector of floats in three versions with one interface: AVX-512, AVX2+FMA, and the compiler's portable vectors.
// Everything has internal linkage: the same names are compiled several times into one library.
#pragma once

#include "float16.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__) && defined(__AVX512BW__)

struct Vec {
  static constexpr int width = 16;
  __m512 v;

  static Vec zero() { return {_mm512_setzero_ps()}; }
  static Vec all(float x) { return {_mm512_set1_ps(x)}; }

  static __m512 widen(__m256i bits) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16)); }
  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vec load(const bf16* p) { return {widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
  static Vec load(const f16* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
  static __mmask16 first(int64_t n) { return __mmask16((1u << n) - 1); }
  static Vec load(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
  static Vec load(const bf16* p, int64_t n) { return {widen(_mm256_maskz_loadu_epi16(first(n), p))}; }
  static Vec load(const f16* p, int64_t n) { return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p))}; }

  __m256i narrow() const {  // bfloat16, round to nearest even
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16));
  }
  __m256i half() const { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store(bf16* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow()); }
  void store(f16* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), half()); }
  void store(float* p, int64_t n) const { _mm512_mask_storeu_ps(p, first(n), v); }
  void store(bf16* p, int64_t n) const { _mm256_mask_storeu_epi16(p, first(n), narrow()); }
  void store(f16* p, int64_t n) const { _mm256_mask_storeu_epi16(p, first(n), half()); }

  friend Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  static Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
  static Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
  static Vec round(Vec a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
  static Vec power_of_two(Vec n) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127)), 23))};
  }
  // Lane i where bit i is set, else 0.
  Vec kept(uint32_t bits) const { return {_mm512_maskz_mov_ps(__mmask16(bits), v)}; }
  float sum() const { return _mm512_reduce_add_ps(v); }
  float maximum() const { return _mm512_reduce_max_ps(v); }

  // The sums of four vectors, in one order of additions whatever the four are.
  static void sum4(Vec a, Vec b, Vec c, Vec d, float* out) {
    const __m512 abcd = fold4(a, b, c, d).v;
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd),
                                      _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(abcd), 1)));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
  }

  // In two steps where many are wanted: `join` of width / 4 `fold4`s is the vector of the sums, in order.
  static Vec fold4(Vec a, Vec b, Vec c, Vec d) {
    const __m512d ab = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(a.v, b.v), _mm512_unpackhi_ps(a.v, b.v)));
    const __m512d cd = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(c.v, d.v), _mm512_unpackhi_ps(c.v, d.v)));
    return {_mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)))};
  }
  static __m512 add_lanes(__m512 a, __m512 b) {  // a's 128-bit lanes 0 + 1, 2 + 3, then b's
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  }
  static Vec join(const Vec* part) {
    return {add_lanes(add_lanes(part[0].v, part[1].v), add_lanes(part[2].v, part[3].v))};
  }
};

// Two vectors of bfloat16 weights from one load: a bfloat16 is the upper half of a float, so the odd elements of a
// 32-bit lane need one AND and the even ones one shift. The activations are packed in the same even-odd order.
inline void split_even_odd(__m512i bits, Vec& even, Vec& odd) {
  even.v = _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
  odd.v = _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(int(0xffff0000))));
}
inline void load_even_odd(const bf16* p, Vec& even, Vec& odd) { split_even_odd(_mm512_loadu_si512(p), even, odd); }
inline void load_even_odd(const bf16* p, int64_t n, Vec& even, Vec& odd) {
  split_even_odd(_mm512_maskz_loadu_epi16(n >= 32 ? ~__mmask32(0) : (__mmask32(1) << n) - 1, p), even, odd);
}

#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

struct Vec {
  static constexpr int width = 8;
  __m256 v;

  static Vec zero() { return {_mm256_setzero_ps()}; }
  static Vec all(float x) { return {_mm256_set1_ps(x)}; }

  static __m256 widen(__m128i bits) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16)); }
  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Vec load(const bf16* p) { return {widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
  static Vec load(const f16* p) { return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
  template <class T>
  static Vec load(const T* p, int64_t n) {
    T part[width] = {};
    for (int64_t i = 0; i < n; ++i) part[i] = p[i];
    return load(part);
  }

  __m128i narrow() const {  // bfloat16, round to nearest even
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
  }
  __m128i half() const { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
  void store(bf16* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow()); }
  void store(f16* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), half()); }
  template <class T>
  void store(T* p, int64_t n) const {
    T part[width];
    store(part);
    for (int64_t i = 0; i < n; ++i) p[i] = part[i];
  }

  friend Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  static Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
  static Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
  static Vec round(Vec a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
  static Vec power_of_two(Vec n) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127)), 23))};
  }
  Vec kept(uint32_t bits) const {
    const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i set = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(int(bits)), lane), lane);
    return {_mm256_and_ps(v, _mm256_castsi256_ps(set))};
  }
  float sum() const { float s[4]; sum4(*this, *this, *this, *this, s); return s[0]; }
  float maximum() const {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
  }
  static void sum4(Vec a, Vec b, Vec c, Vec d, float* out) {
    const __m256 abcd = fold4(a, b, c, d).v;
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1)));
  }
  static Vec fold4(Vec a, Vec b, Vec c, Vec d) {
    return {_mm256_hadd_ps(_mm256_hadd_ps(a.v, b.v), _mm256_hadd_ps(c.v, d.v))};
  }
  static Vec join(const Vec* part) {
    const __m256 low = _mm256_permute2f128_ps(part[0].v, part[1].v, 0x20);
    return {_mm256_add_ps(low, _mm256_permute2f128_ps(part[0].v, part[1].v, 0x31))};
  }
};

inline void split_even_odd(__m256i bits, Vec& even, Vec& odd) {
  even.v = _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
  odd.v = _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(int(0xffff0000))));
}
inline void load_even_odd(const bf16* p, Vec& even, Vec& odd) {
  split_even_odd(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), even, odd);
}
inline void load_even_odd(const bf16* p, int64_t n, Vec& even, Vec& odd) {
  bf16 part[16] = {};
  for (int64_t i = 0; i < n; ++i) part[i] = p[i];
  load_even_odd(part, even, odd);
}

#else  // portable: the vector extension of GCC and Clang, which any processor gets in its own instructions

struct Vec {
  static constexpr int width = 8;
  typedef float Floats __attribute__((vector_size(32)));
  typedef int32_t Ints __attribute__((vector_size(32)));
  Floats v;

  static Vec zero() { return {Floats{}}; }
  static Vec all(float x) { return {Floats{} + x}; }
  template <class T>
  static Vec load(const T* p) { return load(p, width); }
  static Vec load(const float* p) { Vec a; std::memcpy(&a.v, p, sizeof(a.v)); return a; }
  template <class T>
  static Vec load(const T* p, int64_t n) {
    Vec a = zero();
    for (int64_t i = 0; i < n; ++i) a.v[i] = to_float(p[i]);
    return a;
  }
  template <class T>
  void store(T* p) const { store(p, width); }
  void store(float* p) const { std::memcpy(p, &v, sizeof(v)); }
  template <class T>
  void store(T* p, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) from_float(v[i], p[i]);
  }
  friend Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
  friend Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
  friend Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
  friend Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
  static Vec max(Vec a, Vec b) { return {a.v > b.v ? a.v : b.v}; }
  static Vec min(Vec a, Vec b) { return {a.v < b.v ? a.v : b.v}; }
  static Vec round(Vec a) {  // to nearest even, for |a| < 2^22: adding 1.5 * 2^23 drops the fraction
    const Floats shift = Floats{} + 12582912.0f;
    return {(a.v + shift) - shift};
  }
  static Vec power_of_two(Vec n) {
    const Ints exponent = (__builtin_convertvector(n.v, Ints) + 127) << 23;
    Vec a;
    std::memcpy(&a.v, &exponent, sizeof(a.v));
    return a;
  }
  Vec kept(uint32_t bits) const {
    const Ints lane = {1, 2, 4, 8, 16, 32, 64, 128};
    return {((Ints{} + int32_t(bits)) & lane) != 0 ? v : Floats{}};
  }
  float sum() const { return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7])); }
  float maximum() const {
    float m = v[0];
    for (int i = 1; i < width; ++i) m = v[i] > m ? v[i] : m;
    return m;
  }
  static void sum4(Vec a, Vec b, Vec c, Vec d, float* out) {
    out[0] = a.sum(); out[1] = b.sum(); out[2] = c.sum(); out[3] = d.sum();
  }
  static Vec fold4(Vec a, Vec b, Vec c, Vec d) { return {Floats{a.sum(), b.sum(), c.sum(), d.sum()}}; }
  static Vec join(const Vec* part) {
    const Floats &a = part[0].v, &b = part[1].v;
    return {Floats{a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]}};
  }
};

inline void load_even_odd(const bf16* p, int64_t n, Vec& even, Vec& odd) {
  even = odd = Vec::zero();
  for (int64_t i = 0; i < n; i += 2) even.v[i / 2] = to_float(p[i]);
  for (int64_t i = 1; i < n; i += 2) odd.v[i / 2] = to_float(p[i]);
}
inline void load_even_odd(const bf16* p, Vec& even, Vec& odd) {  // lane i holds elements 2i (low half) and 2i+1 (high)
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  Vec::Ints bits;
  std::memcpy(&bits, p, sizeof(bits));
  const Vec::Ints low = bits << 16, high = bits & int32_t(0xffff0000);
  std::memcpy(&even.v, &low, sizeof(low));
  std::memcpy(&odd.v, &high, sizeof(high));
#else
  load_even_odd(p, 16, even, odd);
#endif
}

#endif

// Keeps a vector in its register until its last use. The compiler may think it cheaper to load it again each time, as an
// operand: three activation rows of bfloat16 took 1.6 times as long so (GCC 12, Zen 4).
template <class V>
inline void keep([[maybe_unused]] V& vector) {
#if defined(__AVX512F__)
  asm("" : "+v"(vector));
#elif defined(__AVX2__)
  asm("" : "+x"(vector));
#endif
}

// exp(x) = 2^n * e^r, n = round(x / ln 2), |r| <= ln(2)/2: ln 2 is subtracted in two parts to keep r exact, and e^r is
// its Taylor polynomial of degree 7, whose remainder (0.35^8 / 8! = 5e-9) is under a tenth of float's rounding.
// Saturates at e^-87 and e^88, inside float's normal range. NaN stays NaN: min and max give their second operand then.
inline Vec exp(Vec x) {
  x = Vec::min(Vec::all(88.0f), Vec::max(Vec::all(-87.0f), x));
  const Vec n = Vec::round(x * Vec::all(1.44269504088896341f));
  Vec r = Vec::fma(n, Vec::all(-0.693359375f), x);
  r = Vec::fma(n, Vec::all(2.12194440e-4f), r);
  Vec p = Vec::all(1.0f / 5040);
  p = Vec::fma(p, r, Vec::all(1.0f / 720));
  p = Vec::fma(p, r, Vec::all(1.0f / 120));
  p = Vec::fma(p, r, Vec::all(1.0f / 24));
  p = Vec::fma(p, r, Vec::all(1.0f / 6));
  p = Vec::fma(p, r, Vec::all(0.5f));
  p = Vec::fma(p, r, Vec::all(1.0f));
  p = Vec::fma(p, r, Vec::all(1.0f));
  return p * Vec::power_of_two(n);
}

}  // namespace
