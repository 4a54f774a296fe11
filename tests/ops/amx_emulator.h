// The tile registers of Intel's AMX in plain C++, for tests on machines without them: configuration, loads, stores and
// the bfloat16 product as the Software Developer's Manual gives them (volume 2, LDTILECFG, TILELOADD, TDPBF16PS). What
// the processor would refuse is thrown. Every row that is loaded can be watched.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>

namespace amx_emulator {

constexpr int kTiles = 8, kRows = 16, kRowBytes = 64;

struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Tile {
  int rows = 0, bytes = 0;
  alignas(64) uint8_t data[kRows][kRowBytes] = {};

  template <class T>
  T get(int row, int index) const {
    T value;
    std::memcpy(&value, data[row] + index * sizeof(T), sizeof(T));
    return value;
  }
};

struct State {
  bool configured = false;
  Tile tiles[kTiles];
};
inline thread_local State state;
inline std::function<void(const void* row, int bytes)> on_load = [](const void*, int) {};

inline void expect(bool legal, const char* what) {
  if (!legal) throw Fault(std::string("a fault: ") + what);
}

inline Tile& tile(int number) {
  expect(state.configured, "tiles are not configured");
  expect(0 <= number && number < kTiles, "there is no such tile");
  expect(state.tiles[number].rows > 0, "the tile has no shape");
  return state.tiles[number];
}

inline void release() { state = State(); }

inline void load_config(const void* memory) {
  uint8_t bytes[64];
  std::memcpy(bytes, memory, sizeof(bytes));
  release();
  expect(bytes[0] <= 1, "palette");
  if (bytes[0] == 0) return;
  expect(bytes[1] == 0, "start_row: only an interrupted load leaves one");
  for (int i = 2; i < 16; ++i) expect(bytes[i] == 0, "reserved bytes of a configuration");
  for (int t = 0; t < 16; ++t) {
    uint16_t row_bytes;
    std::memcpy(&row_bytes, bytes + 16 + 2 * t, 2);
    const int rows = bytes[48 + t];
    expect(t < kTiles || (rows == 0 && row_bytes == 0), "a shape for a tile that does not exist");
    expect(rows <= kRows && row_bytes <= kRowBytes, "a tile larger than 16 rows of 64 bytes");
    expect((rows == 0) == (row_bytes == 0), "a tile with rows or bytes alone");
    if (t < kTiles) state.tiles[t].rows = rows, state.tiles[t].bytes = row_bytes;
  }
  state.configured = true;
}

inline void clear(Tile& t) { std::memset(t.data, 0, sizeof(t.data)); }
inline void zero(int number) { clear(tile(number)); }

inline void load(int number, const void* base, int64_t stride) {
  Tile& t = tile(number);
  clear(t);
  for (int r = 0; r < t.rows; ++r) {
    const char* row = static_cast<const char*>(base) + r * stride;
    on_load(row, t.bytes);
    std::memcpy(t.data[r], row, t.bytes);
  }
}

inline void store(int number, void* base, int64_t stride) {
  const Tile& t = tile(number);
  for (int r = 0; r < t.rows; ++r) std::memcpy(static_cast<char*>(base) + r * stride, t.data[r], t.bytes);
}

// Denormals are zero as operands and as results, whatever the thread's own rounding state says.
inline float flushed(float x) { return std::fabs(x) < FLT_MIN ? std::copysign(0.0f, x) : x; }
inline float widened(uint16_t bits) {
  const uint32_t wide = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return flushed(value);
}

// c[m][n] += sum over k pairs of a[m] times b[k][n]: even and odd values of the pairs are summed apart, each product
// rounded once together with its addition; the two sums meet, then c.
inline void dpbf16ps(int c_number, int a_number, int b_number) {
  Tile& c = tile(c_number);
  const Tile &a = tile(a_number), &b = tile(b_number);
  expect(c_number != a_number && c_number != b_number && a_number != b_number, "three different tiles are expected");
  expect(a.bytes % 4 == 0 && b.bytes % 4 == 0 && c.bytes % 4 == 0, "row lengths of whole pairs are expected");
  expect(c.rows == a.rows && c.bytes == b.bytes && a.bytes / 4 == b.rows, "shapes that do not multiply");
  for (int m = 0; m < c.rows; ++m) {
    for (int n = 0; n < c.bytes / 4; ++n) {
      float even = 0.0f, odd = 0.0f;
      for (int k = 0; k < b.rows; ++k) {
        even = flushed(std::fma(widened(a.get<uint16_t>(m, 2 * k)), widened(b.get<uint16_t>(k, 2 * n)), even));
        odd = flushed(std::fma(widened(a.get<uint16_t>(m, 2 * k + 1)), widened(b.get<uint16_t>(k, 2 * n + 1)), odd));
      }
      const float sum = flushed(flushed(c.get<float>(m, n)) + flushed(even + odd));
      std::memcpy(c.data[m] + 4 * n, &sum, 4);
    }
  }
}

}  // namespace amx_emulator
