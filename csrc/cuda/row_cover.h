// Which memory a weight row covers, and which rows a block takes: the skinny linear's whole index arithmetic, plain
// enough to be compiled by g++ and tested exhaustively without a GPU (tests/cuda/row_cover.cpp).
//
// Memory is cut at 16-byte boundaries into slots of V elements (8 of 2 bytes, 4 of 4 bytes). A row of K elements may
// start anywhere in a slot: at its `phase`. Its whole slots (chunks) are loaded 16 bytes at a time; the up to V - 1
// elements before the first chunk and after the last are its edges, loaded one by one, so that nothing outside the row
// is ever read. Element k of the row has the place phase + k: x is kept in shared memory by place, so that the 16 bytes
// of x that meet a chunk are aligned whatever the row's phase.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define PYPRUNE_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define PYPRUNE_HOST_DEVICE inline
#endif

namespace pyprune::cuda {

constexpr int kWideBytes = 16;
constexpr int kMostElements = 1 << 30;  // of a row, and rows: indices stay clear of 32 bits

PYPRUNE_HOST_DEVICE int ceil_div(int a, int b) { return (a + b - 1) / b; }
PYPRUNE_HOST_DEVICE int smaller(int a, int b) { return a < b ? a : b; }
PYPRUNE_HOST_DEVICE int larger(int a, int b) { return a < b ? b : a; }

struct RowCover {
  int phase;   // elements between a 16-byte boundary and the row's first element
  int head;    // elements before the first chunk
  int chunks;  // whole 16-byte slots
  int tail;    // elements after the last chunk
  int first;   // slot of chunk 0
  int slots;   // slots the row touches

  PYPRUNE_HOST_DEVICE int edges() const { return head + tail; }
  // Element of edge e: the head's, then the tail's.
  PYPRUNE_HOST_DEVICE int edge_element(int e, int k) const { return e < head ? e : k - tail + (e - head); }
};

PYPRUNE_HOST_DEVICE RowCover cover_row(int phase, int k, int v) {
  RowCover c;
  c.phase = phase;
  c.head = smaller((v - phase) % v, k);
  c.chunks = (k - c.head) / v;
  c.tail = k - c.head - c.chunks * v;
  c.first = phase ? 1 : 0;
  c.slots = k ? ceil_div(phase + k, v) : 0;
  return c;
}

// Phase of row `row` of a matrix of `size`-byte elements at `address`, its rows `stride` elements apart.
PYPRUNE_HOST_DEVICE int phase_of(uint64_t address, int64_t row, int64_t stride, int size) {
  return int((address / size + uint64_t(row) * uint64_t(stride)) % (kWideBytes / size));
}

// Rows this far apart have the same phase: V / gcd(stride, V), 1 for aligned or padded strides, V for odd ones.
PYPRUNE_HOST_DEVICE int phase_period(int64_t stride, int v) {
  const int rest = int(stride % v);
  return rest ? v / (rest & -rest) : 1;
}

// Row i of a block that takes `count` rows. A block's rows lie `period` apart, so one copy of x serves them all.
PYPRUNE_HOST_DEVICE int block_row(int block, int i, int count, int period) {
  return (block / period * count + i) * period + block % period;
}
PYPRUNE_HOST_DEVICE int block_count(int n, int count, int period) { return ceil_div(n, count * period) * period; }

// x may be too long for shared memory: it is then staged in panels of `width` chunks. Panel `panel` of `panels` holds
// the slots [begin, end); the first also holds the head's slot and the last the tail's.
struct Panel {
  int begin, end;
};
PYPRUNE_HOST_DEVICE Panel panel_of(const RowCover& c, int panel, int panels, int width) {
  return {panel ? smaller(c.first + panel * width, c.slots) : 0,
          panel + 1 == panels ? c.slots : smaller(c.first + (panel + 1) * width, c.slots)};
}

}  // namespace pyprune::cuda
