// The skinny linear seen from the host: what it is asked to compute, and how the work is laid out.
#pragma once

#include <cstdint>

#include "row_cover.h"

namespace pyprune::cuda {

enum class DType : int { f32 = 0, bf16 = 1, f16 = 2 };

PYPRUNE_HOST_DEVICE int size_of(DType type) { return type == DType::f32 ? 4 : 2; }

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
// 16-byte loads that a thread has under way, and the least number of blocks an SM should hold, for one matrix or two.
// Their product is what is in flight on an SM, 64 or 72 KiB, where bandwidth times latency needs about 36
// (4.8 TB/s, 1 us, 132 SMs: an H200). The blocks bound the registers, at 128 and 80 a thread; two rows and float32
// would spill at 80. Chosen among seven such pairs, blocks of 128, 256 and 512 threads, by time on an H100
// (bench/NOTES.md).
PYPRUNE_HOST_DEVICE constexpr int loads_in_flight(int matrices) { return matrices == 1 ? 8 : 6; }
PYPRUNE_HOST_DEVICE constexpr int blocks_per_processor(int matrices, int rows, int element_size) {
  return matrices == 2 && rows == 1 && element_size == 2 ? 3 : 2;
}

struct Plan {
  int split = 1;            // warps that share a row
  int rows_per_warp = 1;    // rows a warp takes one after the other
  int period = 1;           // distance of a block's rows: they have the same phase
  int copies = 1;           // of x: two where gate and up rows differ in phase
  int steps_per_panel = 1;  // turns of the load ring over one staged piece of x
  int panel_slots = 0;      // 16-byte slots of shared memory for one row of one copy of x
  int blocks = 0;
  int shared_bytes = 0;
};

// What is made of the sums of products:
//   linear    [residual +] (norm(x) weight0^T + bias0)
//   gate_up   silu(norm(x) weight0^T + bias0) * (norm(x) weight1^T + bias1)
//   qkv_rope  norm(x) by the query, key and value weights, whose rows are taken in pairs (i, i + half) of a head, rotated
//             by their position; queries are the output, keys and values go to their places in the caches
enum class Form : int { linear = 0, gate_up = 1, qkv_rope = 2 };

PYPRUNE_HOST_DEVICE constexpr int matrices_of(Form form) { return form == Form::linear ? 1 : 2; }

// Of qkv_rope: heads are numbered q, then k, then v, and "row" is a pair: head * half + i. Weights and biases are one for
// each of the three.
struct Heads {
  const void* weight[3] = {};
  int64_t stride[3] = {};
  const void* bias[3] = {};
  bool bias_is_float[3] = {};
  int heads = 0, kv_heads = 0, half = 1;
  const float *cos = nullptr, *sin = nullptr;  // [limit, half]
  int64_t cos_stride = 0, sin_stride = 0;
  const int64_t *positions = nullptr, *slots = nullptr;  // of each activation row; slots null: the positions
  int64_t limit = 0, slot_limit = 0;                     // positions and slots that there are
  int tokens = 1;                                        // activation rows of one sequence
  void* cache[2] = {};                                   // keys, values: of the weights' type
  int64_t batch_stride[2] = {}, head_stride[2] = {}, row_stride[2] = {};
};

// x is [rows, k] and out [rows, n], their rows x_stride and out_stride elements apart (out of qkv_rope: contiguous); what
// lies between is neither read nor written. Absent pointers are null.
struct Arguments {
  const void* weight[2] = {};
  int64_t stride[2] = {};  // elements between weight rows
  const void* bias[2] = {};
  const void* x = nullptr;
  const void* norm = nullptr;
  const void* residual = nullptr;  // of the output's type and shape, contiguous
  void* out = nullptr;
  const bool* skip = nullptr;  // this sublayer's flag
  int n = 0, k = 0;  // at most kMostElements
  int x_stride = 0, out_stride = 0;  // the same
  float eps = 0;
  DType weight_type = {};
  // Each of these is float32, or else of the weights' type.
  bool x_is_float = false, norm_is_float = false, out_is_float = false, bias_is_float[2] = {};
  Heads heads;  // of qkv_rope; its weights start on 16 bytes, all rows, so that they share one phase
  Plan plan;
};

struct Device {
  int processors;
  int shared_per_block;      // limit a block
  int shared_per_processor;  // of an SM, shared by its blocks
};

// The layout for `rows` (1 or 2) activations and `matrices` (1 or 2) weights. Its rules follow the quickest of all layouts
// on an H100 for the shapes of LLaMA 7B and 1B (bench/NOTES.md).
inline Plan plan_of(const Arguments& a, int rows, int matrices, const Device& device) {
  const int v = kWideBytes / size_of(a.weight_type), unroll = loads_in_flight(matrices) / matrices;
  const int blocks = blocks_per_processor(matrices, rows, kWideBytes / v);
  Plan p;
  p.period = phase_period(a.stride[0], v);
  if (matrices == 2) {
    p.period = larger(p.period, phase_period(a.stride[1], v));
    for (int row = 0; row < p.period; ++row)
      if (phase_of(reinterpret_cast<uint64_t>(a.weight[0]), row, a.stride[0], kWideBytes / v) !=
          phase_of(reinterpret_cast<uint64_t>(a.weight[1]), row, a.stride[1], kWideBytes / v))
        p.copies = 2;
  }
  // A row is shared by warps where there would be less than a third of those that fill the device, and while each of its
  // threads keeps half a ring of loads.
  const int64_t capacity = int64_t(device.processors) * blocks;
  while (p.split < kWarps && int64_t(a.n) * p.split * 3 < capacity * kWarps && a.k / v >= p.split * 32 * unroll) p.split *= 2;

  const int slots = ceil_div(a.k + v - 1, v), width = unroll * 32 * p.split;
  const int slot_bytes = kWideBytes * rows * p.copies;
  // At least two blocks an SM; 2 KiB cover what the runtime and the reductions take.
  const int budget = smaller(device.shared_per_block, device.shared_per_processor / 2) - 2048;
  if (int64_t(slots) * slot_bytes <= budget) {
    p.steps_per_panel = larger(1, ceil_div(slots, width));
    p.panel_slots = slots;
  } else {
    p.steps_per_panel = larger(1, (budget / slot_bytes - 2) / width);
    p.panel_slots = p.steps_per_panel * width + 2;
  }
  p.shared_bytes = p.panel_slots * slot_bytes;

  // Every block stages x anew, rows / (its weight rows) of the weights' traffic: two rows a warp where one would be more
  // blocks than fit at a time, four where those would still fill the device twice.
  const int at_a_time = kWarps / p.split;
  const auto blocks_of = [&](int rows_per_warp) { return int64_t(a.n) / (at_a_time * rows_per_warp); };
  if (p.panel_slots >= slots) {
    if (blocks_of(1) > capacity) p.rows_per_warp = 2;
    if (p.rows_per_warp == 2 && blocks_of(4) >= 2 * capacity) p.rows_per_warp = 4;
  }
  p.blocks = block_count(a.n, at_a_time * p.rows_per_warp, p.period);
  return p;
}

// May the kernel start before the previous one has ended (sm_90)? It reads weights and the skip flag then, so nothing that
// still runs may write them: true inside a decode step that the engine records, unknown anywhere else.
enum class Overlap : int { while_capturing, never, always };

// Queues the kernel on `stream` (a cudaStream_t) of the current device and gives a cudaError_t. No host synchronisation:
// it can be captured in a CUDA graph, once it has run before (its first run loads the code).
int launch_skinny_linear(Arguments arguments, int rows, Form form, int device, void* stream, Overlap overlap);

}  // namespace pyprune::cuda
