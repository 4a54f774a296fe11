// Products of bfloat16 weights and activations on AMX tiles: out[m][r] = sum_k weight[r][k] * x[m][k].
//
// A tile is 16 rows of 64 bytes. TDPBF16PS adds A * B to C: here A is 16 weight rows x 32 values of k as they lie in
// memory, B the same 16 pairs of k x 16 activation rows, C their float32 sums. One pass over the weights serves four
// groups of 16 activation rows. Every number of rows takes this way, so the additions of one sum depend on k alone:
// 16 pairs, even and odd values apart, then onto the sum of those before (Intel, Software Developer's Manual 2, TDPBF16PS).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__AMX_TILE__)
#include <immintrin.h>
#endif

#include "prefetch.h"

namespace {
namespace amx {

constexpr int64_t kRows = 16;                // rows of weight, and of activations, in a tile
constexpr int64_t kDepth = 32;               // values of k in a tile
constexpr int64_t kChunk = kDepth * 2;       // their bytes in one row
constexpr int64_t kGroups = 4;               // tiles of activations that one load of weights meets
constexpr int64_t kTogether = kGroups * kRows;

inline int64_t chunks(int64_t k) { return (k + kDepth - 1) / kDepth; }

// ---- packed activations ---------------------------------------------------------------------------------------------

// `count` rows lie in groups of 16, the last one narrower; a group chunk by chunk, a chunk as B wants it: pair of k, row,
// two values. Rows [0, m) take m * chunks * 64 bytes where m is a multiple of 16 or all of them.
inline int64_t packed_bytes(int64_t n, int64_t count) { return count * chunks(n) * kChunk; }

// Puts chunk `index` of row m, 32 bfloat16 values, in its place.
inline void place(const void* values, int64_t index, int64_t n, int64_t m, int64_t count, void* packed) {
  const int64_t first = m / kRows * kRows, columns = std::min(kRows, count - first);
  char* home = static_cast<char*>(packed) + (first * chunks(n) + index * columns) * kChunk + (m - first) * 4;
  const char* pairs = static_cast<const char*>(values);
  for (int64_t i = 0; i < kDepth / 2; ++i) std::memcpy(home + i * columns * 4, pairs + i * 4, 4);
}

// ---- tiles ----------------------------------------------------------------------------------------------------------

// 0, 1, 2: sums of whole groups of activations; 3: of the last group. 4: weights. 5, 6: whole groups; 7: the last one.
struct alignas(64) Shapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  Shapes(int64_t weight_rows, int64_t last_columns) {
    const auto shape = [this](int tile, int64_t height, int64_t bytes) {
      rows[tile] = uint8_t(height);
      row_bytes[tile] = uint16_t(bytes);
    };
    for (int tile = 0; tile < 3; ++tile) shape(tile, weight_rows, kRows * 4);
    shape(3, weight_rows, last_columns * 4);
    shape(4, weight_rows, kChunk);
    for (int tile = 5; tile < 7; ++tile) shape(tile, kDepth / 2, kRows * 4);
    shape(7, kDepth / 2, last_columns * 4);
  }
};
static_assert(sizeof(Shapes) == 64);

// To GCC 12 a tile instruction reads no memory, a configuration its first 8 bytes: without this it leaves out what was
// written for them.
inline void memory_is_written() { asm volatile("" ::: "memory"); }

inline void configure(const Shapes& shapes) {
  memory_is_written();
  _tile_loadconfig(&shapes);
}

// Some activation rows: `groups` of 16 at most, each `group_bytes` long, the last of `last` rows.
struct Activations {
  const char* data;
  int64_t group_bytes, groups, last;
};

// The sums of each group += one chunk of weights (rows `stride` bytes apart) times the group's chunk `index`.
template <int Groups>
inline void add_products(const void* weights, int64_t stride, const Activations& x, int64_t index) {
  const char* whole = x.data + index * kRows * kChunk;
  _tile_loadd(4, weights, stride);
  if constexpr (Groups > 1) {
    _tile_loadd(5, whole, kRows * 4);
    _tile_dpbf16ps(0, 4, 5);
  }
  if constexpr (Groups > 2) {
    _tile_loadd(6, whole + x.group_bytes, kRows * 4);
    _tile_dpbf16ps(1, 4, 6);
  }
  if constexpr (Groups > 3) {
    _tile_loadd(5, whole + 2 * x.group_bytes, kRows * 4);
    _tile_dpbf16ps(2, 4, 5);
  }
  _tile_loadd(7, x.data + (Groups - 1) * x.group_bytes + index * x.last * kChunk, x.last * 4);
  _tile_dpbf16ps(3, 4, 7);
}

// out[m][r] = sums[r][m] for the 16 activation rows, or fewer, of one group.
inline void transpose(const float (*sums)[kRows], int64_t rows, int64_t columns, float* out, int64_t out_stride) {
  for (int64_t m = 0; m < columns; ++m)
    for (int64_t r = 0; r < rows; ++r) out[m * out_stride + r] = sums[r][m];
}

// Up to 16 weight rows times `Groups` groups of activation rows. The end of a row that fills no chunk is copied: what
// lies behind it is not read, and zeros stand for it.
template <int Groups>
inline void multiply(const char* weights, int64_t stride, int64_t rows, int64_t k, const Activations& x, Prefetch prefetch,
                     float* out, int64_t out_stride) {
  const int64_t whole = k / kDepth, left = k % kDepth;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t i = 0, due = 0; i < whole; ++i) {
    prefetch.step(whole, due);
    add_products<Groups>(weights + i * kChunk, stride, x, i);
  }
  if (left) {
    alignas(64) uint16_t ends[kRows][kDepth] = {};
    for (int64_t r = 0; r < rows; ++r) std::memcpy(ends[r], weights + r * stride + whole * kChunk, left * 2);
    memory_is_written();
    add_products<Groups>(ends, kChunk, x, whole);
  }
  alignas(64) float sums[kRows][kRows];
  const auto whole_group = [&](int64_t group) {
    transpose(sums, rows, kRows, out + group * kRows * out_stride, out_stride);
  };
  if constexpr (Groups > 1) {
    _tile_stored(0, sums, kRows * 4);
    whole_group(0);
  }
  if constexpr (Groups > 2) {
    _tile_stored(1, sums, kRows * 4);
    whole_group(1);
  }
  if constexpr (Groups > 3) {
    _tile_stored(2, sums, kRows * 4);
    whole_group(2);
  }
  _tile_stored(3, sums, kRows * 4);
  transpose(sums, rows, x.last, out + (Groups - 1) * kRows * out_stride, out_stride);
}

// The tiles are configured anew in every call and released at its end: other code of this thread (oneDNN's) configures
// them in its own way, and a thread that leaves them in use has the system save 8 KB at every switch and its core kept
// from deep sleep. They are registers of their own: nothing has to be cleared between them and AVX.
inline void linear(const void* weight, int64_t stride, int64_t rows, int64_t k, const void* packed, int64_t count,
                   float* out, int64_t out_stride, const void* next) {
  const int64_t group_bytes = kRows * chunks(k) * kChunk;
  for (int64_t m = 0; m < count; m += kTogether) {
    const int64_t some = std::min(kTogether, count - m), groups = (some + kRows - 1) / kRows;
    const Activations x{static_cast<const char*>(packed) + m / kRows * group_bytes, group_bytes, groups,
                        some - (groups - 1) * kRows};
    for (int64_t r = 0; r < rows; r += kRows) {
      const int64_t height = std::min(kRows, rows - r);
      if (r == 0 || height < kRows) configure(Shapes(height, x.last));
      const char* w = static_cast<const char*>(weight) + r * stride;
      float* home = out + m * out_stride + r;
      const char* later = Prefetch::of(weight, kRows * stride, r / kRows, (rows + kRows - 1) / kRows, next);
      const Prefetch prefetch{later, m ? 0 : height * stride / 64};
      switch (groups) {
        case 1: multiply<1>(w, stride, height, k, x, prefetch, home, out_stride); break;
        case 2: multiply<2>(w, stride, height, k, x, prefetch, home, out_stride); break;
        case 3: multiply<3>(w, stride, height, k, x, prefetch, home, out_stride); break;
        default: multiply<4>(w, stride, height, k, x, prefetch, home, out_stride);
      }
    }
  }
  _tile_release();
}

}  // namespace amx
}  // namespace
