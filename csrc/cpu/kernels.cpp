// The kernels of one instruction set. CMakeLists.txt compiles this file several times, each time with other compiler
// flags and another PYPRUNE_ISA; all that leaves it is the table at its end.
#include "kernels.h"

#include <type_traits>

#include "prefetch.h"
#include "compressed_bf16_row.h"
#include "repeat.h"
#include "simd.h"
#if defined(__AMX_BF16__)  // bfloat16 weights go on tiles, the others as with AVX-512
#include "amx.h"
#endif

namespace {

using pyprune::cpu::Const;
using pyprune::cpu::DType;
using pyprune::cpu::Kernels;

constexpr int64_t kLanes = Vec::width;
constexpr int64_t kRows = 4;           // weight rows that a tile holds
#if defined(__AVX2__)
constexpr int64_t kMaxTile = 6;  // activation rows of a tile
#else
constexpr int64_t kMaxTile = 2;
#endif
// Weight rows that meet MT activation rows side by side, so that all sums have a register: AVX-512 has 32, the others 16.
// With two activation rows at most, SmolLM2's step took 1.5 times as long with AVX2 at batch 4 and 8 (2 cores of a Zen 4).
template <int MT>
constexpr int kSideBySide = Vec::width == 16 || MT <= 2 ? int(kRows) : 2;
constexpr int64_t kMaxInTurn = 4, kInTurnBytes = 12288;  // activations that meet one weight row after the other
constexpr int64_t kLongRow = Vec::width == 16 ? 2048 : 0;  // values of a weight row beyond which a single activation row meets two

// Calls f with a typed null pointer for values of `type`: f(static_cast<const T*>(nullptr)).
template <class F>
inline auto with_type(DType type, F&& f) {
  switch (pyprune::cpu::value_type(type)) {
    case DType::bf16: return f(static_cast<const bf16*>(nullptr));
    case DType::f16: return f(static_cast<const f16*>(nullptr));
    default: return f(static_cast<const float*>(nullptr));
  }
}

// ---- how a chunk of weights meets a chunk of packed activations ----------------------------------------------------

template <class W>
struct Dot {  // float32 and float16: both in memory order
  using X = float;
  static constexpr int64_t chunk = 2 * kLanes, products = 2;  // of a chunk, each waiting for the one before
  Vec a, b;

  void in_registers() { keep(a.v), keep(b.v); }
  Dot() = default;
  explicit Dot(const W* p) : a(Vec::load(p)), b(Vec::load(p + kLanes)) {}
  Dot(const W* p, int64_t n)
      : a(n < kLanes ? Vec::load(p, n) : Vec::load(p)), b(n > kLanes ? Vec::load(p + kLanes, n - kLanes) : Vec::zero()) {}
  static void pack(const float* x, X* out) {
    Vec::load(x).store(out);
    Vec::load(x + kLanes).store(out + kLanes);
  }
  template <int R>
  ALWAYS_INLINE static void multiply(const Dot (&w)[R], const X* x, Vec (&acc)[R]) {
    const Vec xa = Vec::load(x);
    repeat<R>([&](auto r) ALWAYS_INLINE_LAMBDA { acc[r] = Vec::fma(w[r].a, xa, acc[r]); });
    const Vec xb = Vec::load(x + kLanes);
    repeat<R>([&](auto r) ALWAYS_INLINE_LAMBDA { acc[r] = Vec::fma(w[r].b, xb, acc[r]); });
  }
};

#if defined(__AVX512BF16__)

template <>
struct Dot<bf16> {  // the processor multiplies pairs of bfloat16; activations are rounded to bfloat16 for it
  using X = bf16;
  static constexpr int64_t chunk = 32, products = 1;
  __m512bh bits;

  void in_registers() { keep(bits); }
  Dot() = default;
  explicit Dot(const bf16* p) : bits((__m512bh)_mm512_loadu_si512(p)) {}
  explicit Dot(Bits values) : bits((__m512bh)values) {}
  Dot(const bf16* p, int64_t n) : bits((__m512bh)_mm512_maskz_loadu_epi16(n >= 32 ? ~0u : (1u << n) - 1, p)) {}
  static void pack(const float* x, X* out) {
    Vec::load(x).store(out);
    Vec::load(x + 16).store(out + 16);
  }
  template <int R>
  ALWAYS_INLINE static void multiply(const Dot (&w)[R], const X* x, Vec (&acc)[R]) {
    const __m512bh xs = (__m512bh)_mm512_loadu_si512(x);
    repeat<R>([&](auto r) ALWAYS_INLINE_LAMBDA { acc[r].v = _mm512_dpbf16_ps(acc[r].v, w[r].bits, xs); });
  }
};

#else

template <>
struct Dot<bf16> {  // even elements, then odd ones: see load_even_odd
  using X = float;
  static constexpr int64_t chunk = 2 * kLanes, products = 2;
  Vec even, odd;

  void in_registers() { keep(even.v), keep(odd.v); }
  Dot() = default;
  explicit Dot(const bf16* p) { load_even_odd(p, even, odd); }
#if defined(__AVX2__)
  explicit Dot(Bits values) { split_even_odd(values, even, odd); }
#else
  explicit Dot(const Bits& bits) { load_even_odd(bits.values, even, odd); }
#endif
  Dot(const bf16* p, int64_t n) { load_even_odd(p, n, even, odd); }
  static void pack(const float* x, X* out) {
    for (int64_t i = 0; i < kLanes; ++i) {
      out[i] = x[2 * i];
      out[kLanes + i] = x[2 * i + 1];
    }
  }
  template <int R>
  ALWAYS_INLINE static void multiply(const Dot (&w)[R], const X* x, Vec (&acc)[R]) {
    const Vec xe = Vec::load(x);
    repeat<R>([&](auto r) ALWAYS_INLINE_LAMBDA { acc[r] = Vec::fma(w[r].even, xe, acc[r]); });
    const Vec xo = Vec::load(x + kLanes);
    repeat<R>([&](auto r) ALWAYS_INLINE_LAMBDA { acc[r] = Vec::fma(w[r].odd, xo, acc[r]); });
  }
};

#endif

template <class W>
constexpr int64_t padded(int64_t n) {
  return (n + Dot<W>::chunk - 1) / Dot<W>::chunk * Dot<W>::chunk;
}

int64_t packed_bytes(DType weight_type, int64_t n, int64_t count) {
#if defined(__AMX_BF16__)
  if (pyprune::cpu::value_type(weight_type) == DType::bf16) return amx::packed_bytes(n, count);
#endif
  return with_type(weight_type, [&](auto* t) {
    using W = std::remove_const_t<std::remove_pointer_t<decltype(t)>>;
    return padded<W>(n) * int64_t(sizeof(typename Dot<W>::X)) * count;
  });
}

int64_t packed_together([[maybe_unused]] DType weight_type) {
#if defined(__AMX_BF16__)
  if (pyprune::cpu::value_type(weight_type) == DType::bf16) return amx::kRows;
#endif
  return 1;
}

template <class T>
inline Vec load_some(const T* p, int64_t n) {
  return n >= kLanes ? Vec::load(p) : Vec::load(p, n);
}

template <class T>
inline void store_some(Vec x, T* p, int64_t n) {
  if (n >= kLanes) x.store(p);
  else x.store(p, n);
}

inline Vec load_any(const Const& source, int64_t i, int64_t n) {
  return with_type(source.type, [&](auto* t) { return load_some(static_cast<decltype(t)>(source.data) + i, n); });
}

// The values [i, i + N) of x * scale * norm as float32, zeros from n on.
template <int64_t N>
inline void scaled(const Const& x, const Const& norm, float scale, int64_t i, int64_t n, float* part) {
  for (int64_t j = 0; j < N; j += kLanes) {
    const int64_t left = n - i - j;
    Vec v = Vec::zero();
    if (left > 0) {
      v = load_any(x, i + j, left) * Vec::all(scale);
      if (norm.data) v = v * load_any(norm, i + j, left);
    }
    v.store(part + j);
  }
}

void pack(DType weight_type, const void* x, DType x_type, const void* norm, DType norm_type, float scale, int64_t n,
          int64_t m, [[maybe_unused]] int64_t count, void* packed) {
#if defined(__AMX_BF16__)
  if (pyprune::cpu::value_type(weight_type) == DType::bf16) {
    for (int64_t i = 0; i < n; i += amx::kDepth) {
      float part[amx::kDepth];
      bf16 values[amx::kDepth];
      scaled<amx::kDepth>({x, x_type}, {norm, norm_type}, scale, i, n, part);
      for (int64_t j = 0; j < amx::kDepth; j += kLanes) Vec::load(part + j).store(values + j);
      amx::place(values, i / amx::kDepth, n, m, count, packed);
    }
    return;
  }
#endif
  with_type(weight_type, [&](auto* t) {
    using W = std::remove_const_t<std::remove_pointer_t<decltype(t)>>;
    using D = Dot<W>;
    auto* out = static_cast<typename D::X*>(packed) + m * padded<W>(n);
    for (int64_t i = 0; i < n; i += D::chunk, out += D::chunk) {
      float part[D::chunk];
      scaled<D::chunk>({x, x_type}, {norm, norm_type}, scale, i, n, part);
      D::pack(part, out);
    }
  });
}

// ---- skinny products: weights stream through once, activations stay in the cache --------------------------------------

// acc[m][r] += weight row w[r] times activation row m, R weight rows and MT activation rows at a time. All of `acc` stays in
// registers: its places are constants, for where a loop names them the compiler may store every sum after every chunk
// (GCC 12: tiles of two to four rows took twice the time of one of six).
template <int R, int MT, class W>
ALWAYS_INLINE void accumulate(const W* const* w, Prefetch prefetch, int64_t k, const char* x, int64_t x_stride, Vec (&acc)[MT][R]) {
  using D = Dot<W>;
  using X = typename D::X;
  const int64_t chunks = k / D::chunk, whole = chunks * D::chunk;
  for (int64_t i = 0, due = 0; i < whole; i += D::chunk) {
    prefetch.step(chunks, due);
    D weights[R];
    repeat<R>([&](auto r) ALWAYS_INLINE_LAMBDA {
      weights[r] = D(w[r] + i);
      if constexpr (MT > 1) weights[r].in_registers();
    });
    repeat<MT>([&](auto m) ALWAYS_INLINE_LAMBDA {
      D::multiply(weights, reinterpret_cast<const X*>(x + m * x_stride) + i, acc[m]);
    });
  }
  if (const int64_t left = k - whole; left > 0) {
    D weights[R];
    repeat<R>([&](auto r) ALWAYS_INLINE_LAMBDA {
      weights[r] = D(w[r] + whole, left);
      if constexpr (MT > 1) weights[r].in_registers();
    });
    repeat<MT>([&](auto m) ALWAYS_INLINE_LAMBDA {
      D::multiply(weights, reinterpret_cast<const X*>(x + m * x_stride) + whole, acc[m]);
    });
  }
}

template <int R, int MT>  // the same for compressed rows: compressed_bf16_linear.h
ALWAYS_INLINE void accumulate(const compressed_bf16* const* w, Prefetch prefetch, int64_t k, const char* x, int64_t x_stride, Vec (&acc)[MT][R]);

// kRows weight rows against MT activation rows, R weight rows at a time. Rows past the end repeat the last one, and their
// results are dropped.
template <class W, int MT, int R>
inline void tile(const W* const* w, Prefetch prefetch, int64_t k, const char* x, int64_t x_stride, float* out,
                 int64_t out_stride, int64_t valid) {
  Vec acc[MT][kRows];
  repeat<kRows / R>([&](auto part) ALWAYS_INLINE_LAMBDA {
    Vec sums[MT][R];
    repeat<MT * R>([&](auto i) ALWAYS_INLINE_LAMBDA { sums[i / R][i % R] = Vec::zero(); });
    accumulate<R, MT>(w + part * R, prefetch.part(part, kRows / R), k, x, x_stride, sums);
    repeat<MT * R>([&](auto i) ALWAYS_INLINE_LAMBDA { acc[i / R][part * R + i % R] = sums[i / R][i % R]; });
  });
  repeat<MT>([&](auto m) ALWAYS_INLINE_LAMBDA {
    float sums[kRows];
    Vec::sum4(acc[m][0], acc[m][1], acc[m][2], acc[m][3], sums);
    for (int64_t r = 0; r < valid; ++r) out[m * out_stride + r] = sums[r];
  });
}

// Memory is read in the order in which it lies. A few activation rows that stay in L1 read one weight row after the other,
// and a single one leaves prefetching to the processor. More of them read kRows weight rows side by side, for fewer loads a
// product, and prefetch the next ones line by line, spread evenly over the tiles.
// SmolLM2's decode step in ms, 2 cores of a Zen 4, each line from one process: 1 row in turn 7.4, prefetched 7.9, side by
// side 9.1; 4 rows in turn 7.6, side by side 9.0, side by side without prefetch 17.
//
// A single activation row adds to one sum at a time. Where a chunk takes two additions, a long row is not over before they
// are, and two rows are taken side by side, prefetched: of the read limit, 7155 bfloat16 values a row without
// AVX-512-BF16 took 51 to 73 % in turn and take 94 % so, float32 81 to 92 and 95 %. With vectors of eight every row is long:
// SmolLM2's blocks from L3 took 5.9 to 6.6 ms in turn and take 4.2 to 4.5 so.
//
// Weights that are `at_hand`, in the cache, are not prefetched.
template <class W>
void linear_typed(const W* weight, int64_t stride, int64_t rows, int64_t k, const char* x, int64_t x_stride,
                  int64_t m_count, float* out, int64_t out_stride, const void* next_weights, bool at_hand = false) {
  const bool in_turn = m_count <= kMaxInTurn && m_count * x_stride <= kInTurnBytes;
  const bool in_pairs = m_count == 1 && Dot<W>::products > 1 && k > kLongRow;
  for (int64_t r = 0; r < rows; r += kRows) {
    const int64_t valid = rows - r < kRows ? rows - r : kRows;
    const W* w[kRows];
    for (int64_t i = 0; i < kRows; ++i) w[i] = weight + (r + (i < valid ? i : valid - 1)) * stride;
    const int64_t block = kRows * stride * int64_t(sizeof(W));
    const Prefetch prefetch{Prefetch::of(weight, block, r / kRows, (rows + kRows - 1) / kRows, next_weights),
                      !at_hand && (m_count > 1 || in_pairs) ? block / 64 : 0};
    const int64_t tiles = (m_count + kMaxTile - 1) / kMaxTile;  // 16 rows go as 6+5+5, not 6+6+4
    for (int64_t m = 0, t = 0; t < tiles; ++t) {
      const int64_t height = (m_count - m + tiles - t - 1) / (tiles - t);
      const Prefetch next = prefetch.part(t, tiles);
      const char* xs = x + m * x_stride;
      float* o = out + m * out_stride + r;
      const auto multiply = [&](auto mt) {
        constexpr int MT = decltype(mt)::value;
        const auto by = [&](auto r) { tile<W, MT, decltype(r)::value>(w, next, k, xs, x_stride, o, out_stride, valid); };
        if constexpr (MT == 1) in_pairs ? by(Number<2>{}) : by(Number<1>{});
        else if constexpr (MT <= kMaxInTurn && kSideBySide<MT> == kRows) in_turn ? by(Number<1>{}) : by(Number<kRows>{});
        else by(Number<kSideBySide<MT>>{});
      };
      switch (height) {
        case 1: multiply(Number<1>{}); break;
        case 2: multiply(Number<2>{}); break;
#if defined(__AVX2__)
        case 3: multiply(Number<3>{}); break;
        case 4: multiply(Number<4>{}); break;
        case 5: multiply(Number<5>{}); break;
        case 6: multiply(Number<6>{}); break;
#endif
      }
      m += height;
    }
  }
}

}  // namespace

#include "compressed_bf16_linear.h"  // compressed weights, by these products

namespace {

void linear(const Const& weight, int64_t rows, int64_t k, const void* packed, int64_t m_count, float* out,
            int64_t out_stride, const void* next) {
  if (weight.type == DType::compressed_bf16) return linear_compressed(weight, rows, k, packed, m_count, out, out_stride, next);
#if defined(__AMX_BF16__)
  if (weight.type == DType::bf16)
    return amx::linear(weight.data, weight.stride * 2, rows, k, packed, m_count, out, out_stride, next);
#endif
  with_type(weight.type, [&](auto* t) {
    linear_typed(static_cast<decltype(t)>(weight.data), weight.stride, rows, k, static_cast<const char*>(packed),
                 packed_bytes(weight.type, k, 1), m_count, out, out_stride, next);
  });
}

// ---- rows of activations --------------------------------------------------------------------------------------------

template <class F>
inline void each(int64_t n, F&& f) {
  for (int64_t i = 0; i < n; i += kLanes) f(i, n - i);
}

float inverse_rms(const void* x, DType type, int64_t n, float eps) {
  Vec sum = Vec::zero();
  each(n, [&](int64_t i, int64_t left) {
    const Vec v = load_any({x, type}, i, left);
    sum = Vec::fma(v, v, sum);
  });
  return 1.0f / __builtin_sqrtf(sum.sum() / float(n) + eps);
}

void scale_norm(const void* x, DType type, const void* norm, DType norm_type, float scale, int64_t n, float* out) {
  each(n, [&](int64_t i, int64_t left) {
    const Vec v = load_any({x, type}, i, left) * Vec::all(scale) * load_any({norm, norm_type}, i, left);
    store_some(v, out + i, left);
  });
}

void to_float_row(const void* x, DType type, int64_t n, float* out) {
  if (type == DType::compressed_bf16) {
    bf16* values = at_hand((n + kGroup - 1) / kGroup * kGroup);
    to_bf16(x, n, values, {});
    return to_float_row(values, DType::bf16, n, out);
  }
  with_type(type, [&](auto* t) {
    const auto* p = static_cast<decltype(t)>(x);
    each(n, [&](int64_t i, int64_t left) { store_some(load_some(p + i, left), out + i, left); });
  });
}

void store_any(Vec v, void* out, DType type, int64_t i, int64_t left) {
  with_type(type, [&](auto* t) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(t)>>;
    store_some(v, static_cast<T*>(out) + i, left);
  });
}

void from_float_row(const float* x, int64_t n, void* out, DType type) {
  each(n, [&](int64_t i, int64_t left) { store_any(load_some(x + i, left), out, type, i, left); });
}

template <class Out, class Other>
void add_typed(const float* x, const Other* y, const void* bias, DType bias_type, int64_t n, Out* out) {
  each(n, [&](int64_t i, int64_t left) ALWAYS_INLINE_LAMBDA {
    Vec v = load_some(x + i, left);
    if (bias) v = v + load_any({bias, bias_type}, i, left);
    if (y) v = v + load_some(y + i, left);
    store_some(v, out + i, left);
  });
}

void add(const float* x, const void* y, DType y_type, const void* bias, DType bias_type, int64_t n, void* out,
         DType type) {
  with_type(type, [&](auto* t) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(t)>>;
    with_type(y_type, [&](auto* o) { add_typed(x, static_cast<decltype(o)>(y), bias, bias_type, n, static_cast<T*>(out)); });
  });
}

void silu_mul(const float* gate, const float* up, const void* gate_bias, const void* up_bias, DType bias_type, int64_t n,
              void* out, DType type) {
  each(n, [&](int64_t i, int64_t left) {
    Vec g = load_some(gate + i, left), u = load_some(up + i, left);
    if (gate_bias) g = g + load_any({gate_bias, bias_type}, i, left);
    if (up_bias) u = u + load_any({up_bias, bias_type}, i, left);
    store_any(g / (Vec::all(1.0f) + exp(Vec::zero() - g)) * u, out, type, i, left);
  });
}

void rotate(float* a, float* b, const float* cos, const float* sin, int64_t n) {
  each(n, [&](int64_t i, int64_t left) {
    const Vec x = load_some(a + i, left), y = load_some(b + i, left);
    const Vec c = load_some(cos + i, left), s = load_some(sin + i, left);
    store_some(x * c - y * s, a + i, left);
    store_some(y * c + x * s, b + i, left);
  });
}

constexpr float kNothing = -__builtin_inff();

// A NaN may or may not win here; it comes out in the sum of exponentials, which keeps it.
float highest_of(const float* x, int64_t n, float start) {
  Vec highest = Vec::all(start);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) highest = Vec::max(highest, Vec::load(x + i));
  float top = highest.maximum();
  for (; i < n; ++i) top = x[i] > top ? x[i] : top;
  return top;
}

void log_sum_exp(const float* logits, int64_t n, float* maximum, float* sum) {
  const float top = highest_of(logits, n, *maximum);
  const Vec shift = Vec::all(top == kNothing ? 0.0f : top);
  Vec total = Vec::zero();
  each(n, [&](int64_t i, int64_t left) {
    const Vec e = exp(load_some(logits + i, left) - shift);
    if (left >= kLanes) {
      total = total + e;
    } else {  // lanes past the end hold exp(0 - shift): only the first ones count
      float part[kLanes];
      e.store(part);
      total = total + Vec::load(part, left);
    }
  });
  float scale[kLanes];
  exp(Vec::all(*maximum) - shift).store(scale);
  const bool first = *maximum == kNothing && *sum == *sum;
  *sum = (first ? 0.0f : *sum * scale[0]) + total.sum();
  *maximum = top;
}

// Three passes over a row that stays in L2: maximum, sum, gradient. Scaled logits are not kept in float32: widening and
// scaling again costs less than the memory. The greatest is subtracted before scaling: its own difference is zero then.
template <class T>
float cross_entropy_gradient_typed(T* logits, int64_t n, int64_t target, float scale) {
  constexpr int kSums = 4;  // exponentials that do not wait for one another's addition
  const float sign = scale < 0 ? -1.0f : 1.0f;
  const Vec signs = Vec::all(sign), factor = Vec::all(scale);
  const int64_t whole = n / (kSums * kLanes) * kSums * kLanes;
  Vec highest = Vec::all(kNothing);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) highest = Vec::max(highest, Vec::load(logits + i) * signs);
  float top = highest.maximum();
  for (; i < n; ++i) {
    const float z = to_float(logits[i]) * sign;
    top = z > top ? z : top;
  }
  top *= sign;
  const Vec shift = Vec::all(top);
  Vec sums[kSums];
  repeat<kSums>([&](auto s) ALWAYS_INLINE_LAMBDA { sums[s] = Vec::zero(); });
  for (i = 0; i < whole; i += kSums * kLanes)
    repeat<kSums>([&](auto s) ALWAYS_INLINE_LAMBDA {
      sums[s] = sums[s] + exp((Vec::load(logits + i + s * kLanes) - shift) * factor);
    });
  float total = ((sums[0] + sums[1]) + (sums[2] + sums[3])).sum();
  for (; i < n; i += kLanes) {
    const int64_t left = n - i;
    float part[kLanes];
    exp((load_some(logits + i, left) - shift) * factor).store(part);
    for (int64_t j = 0; j < left && j < kLanes; ++j) total += part[j];
  }
  const float own = (to_float(logits[target]) - top) * scale;
  const Vec share = Vec::all(scale / total);
  each(n, [&](int64_t j, int64_t left) ALWAYS_INLINE_LAMBDA {
    store_some(exp((load_some(logits + j, left) - shift) * factor) * share, logits + j, left);
  });
  float p[kLanes];
  exp(Vec::all(own)).store(p);
  from_float(scale * (p[0] / total - 1.0f), logits[target]);
  return __builtin_logf(total) - own;
}

float cross_entropy_gradient(void* logits, DType type, int64_t n, int64_t target, float scale) {
  return with_type(type, [&](auto* t) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(t)>>;
    return cross_entropy_gradient_typed(static_cast<T*>(logits), n, target, scale);
  });
}

}  // namespace

#include "attend.h"  // attention, by these products
#include "causal_attention.h"
#include "low_rank.h"

#define PYPRUNE_JOIN2(a, b) a##b
#define PYPRUNE_JOIN(a, b) PYPRUNE_JOIN2(a, b)
#define PYPRUNE_TEXT2(a) #a
#define PYPRUNE_TEXT(a) PYPRUNE_TEXT2(a)

namespace pyprune::cpu {
extern const Kernels PYPRUNE_JOIN(kernels_, PYPRUNE_ISA);
const Kernels PYPRUNE_JOIN(kernels_, PYPRUNE_ISA) = {
    PYPRUNE_TEXT(PYPRUNE_ISA), packed_bytes,   packed_together, pack,     linear, inverse_rms, scale_norm,
    to_float_row,              to_bf16_row,    from_float_row,  add,      silu_mul, rotate,    attend,
    log_sum_exp,               kept_bits,      project,         add_low_rank, low_rank_gradient,
    cross_entropy_gradient,    causal_attention, causal_attention_backward,
};
}  // namespace pyprune::cpu
