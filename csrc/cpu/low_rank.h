// Products of low rank of one thread, under dropout; compiled once per instruction set. `a` has its ranks filled up to
// whole kRankTiles and its columns to whole vectors, with zeros (low_rank.cpp). A mask is one of kept_bits for each row.
#pragma once

#include "dropout.h"
#include "repeat.h"
#include "simd.h"

namespace {

using pyprune::cpu::Kept;
using pyprune::cpu::Mut;
using pyprune::cpu::kRankTile;

// Rows that meet the same values of `a`: their sums must all have a register.
constexpr int kRowsTogether = Vec::width == 16 ? 2 : 1;
constexpr int64_t kMaskBytes = Vec::width / 8;

template <bool Masked, class T>
ALWAYS_INLINE Vec kept_values(const T* x, const uint8_t* mask, int64_t i, int64_t left) {
  const Vec v = load_some(x + i, left);
  if constexpr (!Masked) return v;
  uint32_t bits = mask[i / 8];
  if constexpr (kMaskBytes == 2) bits |= uint32_t(mask[i / 8 + 1]) << 8;
  return v.kept(bits);
}

template <bool Masked, int M, class T>
void project_rows(const T* x, int64_t stride, const Kept& kept, int64_t n, const float* a, int64_t a_stride, int64_t rank,
                  float* out) {
  for (int64_t r = 0; r < rank; r += kRankTile, a += kRankTile * a_stride) {
    Vec sums[M][kRankTile];
    repeat<M * kRankTile>([&](auto j) ALWAYS_INLINE_LAMBDA { sums[j / kRankTile][j % kRankTile] = Vec::zero(); });
    each(n, [&](int64_t i, int64_t left) ALWAYS_INLINE_LAMBDA {
      Vec v[M];
      repeat<M>([&](auto m) ALWAYS_INLINE_LAMBDA { v[m] = kept_values<Masked>(x + m * stride, kept.row(m), i, left); });
      repeat<kRankTile>([&](auto q) ALWAYS_INLINE_LAMBDA {
        const Vec factor = Vec::load(a + q * a_stride + i);
        repeat<M>([&](auto m) ALWAYS_INLINE_LAMBDA { sums[m][q] = Vec::fma(v[m], factor, sums[m][q]); });
      });
    });
    repeat<M>([&](auto m) ALWAYS_INLINE_LAMBDA {
      Vec::sum4(sums[m][0], sums[m][1], sums[m][2], sums[m][3], out + m * rank + r);
      Vec::sum4(sums[m][4], sums[m][5], sums[m][6], sums[m][7], out + m * rank + r + 4);
    });
  }
}

template <bool Masked, int M, class T>
void add_rows(T* y, int64_t stride, const Kept& kept, int64_t n, const float* low, const float* a, int64_t a_stride, int64_t rank) {
  Vec first[M][kRankTile];
  repeat<M * kRankTile>([&](auto j) ALWAYS_INLINE_LAMBDA {
    first[j / kRankTile][j % kRankTile] = Vec::all(low[j / kRankTile * rank + j % kRankTile]);
  });
  each(n, [&](int64_t i, int64_t left) ALWAYS_INLINE_LAMBDA {
    Vec sum[M];
    repeat<M>([&](auto m) ALWAYS_INLINE_LAMBDA { sum[m] = Vec::zero(); });
    repeat<kRankTile>([&](auto q) ALWAYS_INLINE_LAMBDA {
      const Vec factor = Vec::load(a + q * a_stride + i);
      repeat<M>([&](auto m) ALWAYS_INLINE_LAMBDA { sum[m] = Vec::fma(first[m][q], factor, sum[m]); });
    });
    for (int64_t r = kRankTile; r < rank; ++r) {
      const Vec factor = Vec::load(a + r * a_stride + i);
      repeat<M>([&](auto m) ALWAYS_INLINE_LAMBDA { sum[m] = Vec::fma(Vec::all(low[m * rank + r]), factor, sum[m]); });
    }
    repeat<M>([&](auto m) ALWAYS_INLINE_LAMBDA {
      T* row = y + m * stride;
      if constexpr (Masked) {
        uint32_t bits = kept.row(m)[i / 8];
        if constexpr (kMaskBytes == 2) bits |= uint32_t(kept.row(m)[i / 8 + 1]) << 8;
        sum[m] = sum[m].kept(bits);
      }
      store_some(load_some(row + i, left) + sum[m], row + i, left);
    });
  });
}

// The columns of S vectors from i on.
template <bool Masked, int S, class T>
ALWAYS_INLINE void gradient_columns(const T* x, int64_t stride, const Kept& kept, int64_t rows, int64_t i, int64_t left,
                                    const float* low, int64_t rank, float* out, int64_t out_stride) {
  for (int64_t r = 0; r < rank; r += kRankTile) {
    Vec sums[S][kRankTile];
    repeat<S * kRankTile>([&](auto j) ALWAYS_INLINE_LAMBDA { sums[j / kRankTile][j % kRankTile] = Vec::zero(); });
    for (int64_t m = 0; m < rows; ++m) {
      Vec v[S];
      repeat<S>([&](auto s) ALWAYS_INLINE_LAMBDA {
        v[s] = kept_values<Masked>(x + m * stride, kept.row(m), i + s * Vec::width, left - s * Vec::width);
      });
      repeat<kRankTile>([&](auto q) ALWAYS_INLINE_LAMBDA {
        const Vec factor = Vec::all(low[m * rank + r + q]);
        repeat<S>([&](auto s) ALWAYS_INLINE_LAMBDA { sums[s][q] = Vec::fma(factor, v[s], sums[s][q]); });
      });
    }
    repeat<S * kRankTile>([&](auto j) ALWAYS_INLINE_LAMBDA {
      sums[j / kRankTile][j % kRankTile].store(out + (r + j % kRankTile) * out_stride + i + j / kRankTile * Vec::width);
    });
  }
}

// Calls f(T*, whether there is a mask) for values of `type`.
template <class F>
inline void with_type_and_mask(DType type, const Kept& kept, F&& f) {
  with_type(type, [&](auto* t) {
    if (kept.bits) f(t, std::true_type{});
    else f(t, std::false_type{});
  });
}

void project(const Const& x, const Kept& kept, int64_t rows, int64_t n, const float* a, int64_t a_stride, int64_t rank, float* out) {
  with_type_and_mask(x.type, kept, [&](auto* t, auto masked) {
    const auto* values = static_cast<decltype(t)>(x.data);
    int64_t m = 0;
    for (; m + kRowsTogether <= rows; m += kRowsTogether)
      project_rows<masked.value, kRowsTogether>(values + m * x.stride, x.stride, kept.from(m), n, a, a_stride, rank, out + m * rank);
    for (; m < rows; ++m)
      project_rows<masked.value, 1>(values + m * x.stride, x.stride, kept.from(m), n, a, a_stride, rank, out + m * rank);
  });
}

void add_low_rank(const Mut& y, const Kept& kept, int64_t rows, int64_t n, const float* low, const float* a, int64_t a_stride,
                  int64_t rank) {
  with_type_and_mask(y.type, kept, [&](auto* t, auto masked) {
    auto* values = static_cast<std::remove_const_t<std::remove_pointer_t<decltype(t)>>*>(y.data);
    int64_t m = 0;
    for (; m + kRowsTogether <= rows; m += kRowsTogether)
      add_rows<masked.value, kRowsTogether>(values + m * y.stride, y.stride, kept.from(m), n, low + m * rank, a, a_stride, rank);
    for (; m < rows; ++m)
      add_rows<masked.value, 1>(values + m * y.stride, y.stride, kept.from(m), n, low + m * rank, a, a_stride, rank);
  });
}

void low_rank_gradient(const Const& x, const Kept& kept, int64_t rows, int64_t n, const float* low, int64_t rank, float* out,
                       int64_t out_stride) {
  with_type_and_mask(x.type, kept, [&](auto* t, auto masked) {
    const auto* values = static_cast<decltype(t)>(x.data);
    int64_t i = 0;
    for (; i + kRowsTogether * kLanes <= n; i += kRowsTogether * kLanes)
      gradient_columns<masked.value, kRowsTogether>(values, x.stride, kept, rows, i, n - i, low, rank, out, out_stride);
    for (; i < n; i += kLanes)
      gradient_columns<masked.value, 1>(values, x.stride, kept, rows, i, n - i, low, rank, out, out_stride);
  });
}

}  // namespace
