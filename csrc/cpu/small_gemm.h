// Products of float32 matrices that lie in a core's caches; compiled once per instruction set.
#pragma once

#include "repeat.h"
#include "simd.h"

namespace {

// A matrix whose element (r, k) lies at data[r * row + k * column].
struct Matrix32 {
  const float* data;
  int64_t row, column;

  Matrix32 from(int64_t r) const { return {data + r * row, row, column}; }
};

// Vectors of a tile's columns: with six rows their sums leave registers for the operands.
constexpr int kTileColumns = Vec::width == 16 ? 4 : 2;

// M rows and S vectors of columns of c = a b, or c += a b; b has rows of `b_row` values side by side, as c has.
template <int M, int S>
void multiply_tile(const Matrix32& a, const float* b, int64_t b_row, float* c, int64_t c_row, int64_t depth, bool add) {
  Vec sums[M][S];
  repeat<M * S>([&](auto j) ALWAYS_INLINE_LAMBDA {
    sums[j / S][j % S] = add ? Vec::load(c + j / S * c_row + j % S * Vec::width) : Vec::zero();
  });
  const float* x = a.data;
  for (int64_t k = 0; k < depth; ++k, x += a.column, b += b_row) {
    Vec columns[S];
    repeat<S>([&](auto s) ALWAYS_INLINE_LAMBDA { columns[s] = Vec::load(b + s * Vec::width); });
    repeat<M>([&](auto m) ALWAYS_INLINE_LAMBDA {
      const Vec value = Vec::all(x[m * a.row]);
      repeat<S>([&](auto s) ALWAYS_INLINE_LAMBDA { sums[m][s] = Vec::fma(value, columns[s], sums[m][s]); });
    });
  }
  repeat<M * S>([&](auto j) ALWAYS_INLINE_LAMBDA { sums[j / S][j % S].store(c + j / S * c_row + j % S * Vec::width); });
}

template <int S>
void multiply_columns(const Matrix32& a, const float* b, int64_t b_row, float* c, int64_t c_row, int64_t rows, int64_t depth, bool add) {
  const int64_t tiles = (rows + kMaxTile - 1) / kMaxTile;  // 64 rows go as 9 times 6 and 2 times 5
  for (int64_t m = 0, t = 0; t < tiles; ++t) {
    const int64_t height = (rows - m + tiles - t - 1) / (tiles - t);
    const Matrix32 part = a.from(m);
    float* target = c + m * c_row;
    switch (height) {
      case 1: multiply_tile<1, S>(part, b, b_row, target, c_row, depth, add); break;
      case 2: multiply_tile<2, S>(part, b, b_row, target, c_row, depth, add); break;
#if defined(__AVX2__)
      case 3: multiply_tile<3, S>(part, b, b_row, target, c_row, depth, add); break;
      case 4: multiply_tile<4, S>(part, b, b_row, target, c_row, depth, add); break;
      case 5: multiply_tile<5, S>(part, b, b_row, target, c_row, depth, add); break;
      case 6: multiply_tile<6, S>(part, b, b_row, target, c_row, depth, add); break;
#endif
    }
    m += height;
  }
}

// c [rows, columns] = a b, or c += a b. `columns` is a multiple of the vector's width.
void multiply(const Matrix32& a, const float* b, int64_t b_row, float* c, int64_t c_row, int64_t rows, int64_t columns,
              int64_t depth, bool add = false) {
  int64_t n = 0;
  for (; n + kTileColumns * kLanes <= columns; n += kTileColumns * kLanes)
    multiply_columns<kTileColumns>(a, b + n, b_row, c + n, c_row, rows, depth, add);
  for (; n < columns; n += kLanes) multiply_columns<1>(a, b + n, b_row, c + n, c_row, rows, depth, add);
}

}  // namespace
