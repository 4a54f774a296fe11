// The linear of one or two activation rows, any K and N, any row stride: the kernel.
//
// At batch 1 or 2 a linear is as fast as its weights can be read, so everything serves that: 16-byte loads for every
// row, also where K is odd and rows start anywhere (row_cover.h); six or eight loads under way in each thread, in a ring
// of registers that runs on across rows; many small blocks; the first loads issued before the previous kernel has ended
// (sm_90). x is normalised, rounded to the weights' type and kept in shared memory at the phase of the block's rows, so
// that it too is read 16 bytes at a time. Products are summed in float32 in a fixed order: same input, same bits.
//
// Its device functions come from instructions.cuh, or from the emulator that runs this file on a CPU for the tests
// (tests/cuda/emulator.h). It has not run on a GPU yet.
#pragma once

#include "skinny_linear.h"

namespace pyprune::cuda {

// Activations, norms and biases are float32 or of the weights' type W.
template <class W>
__device__ __forceinline__ float load_as_float(const void* data, bool is_float, int64_t i) {
  return is_float ? static_cast<const float*>(data)[i] : widen(static_cast<const W*>(data)[i]);
}

template <class W>
__device__ __forceinline__ void store_as(void* data, bool is_float, int64_t i, float value) {
  if (is_float) static_cast<float*>(data)[i] = value;
  else narrow(value, static_cast<W*>(data)[i]);
}

// Sums under way: two in turn where there is one result, so that a product need not wait for the last one.
template <bool kTwo>
struct Sum {
  float even = 0, odd = 0;

  __device__ __forceinline__ void add(float2 a, float2 b) {
    even = fmaf(a.x, b.x, even);
    float& second = kTwo ? odd : even;
    second = fmaf(a.y, b.y, second);
  }
};

template <class W, class S>
__device__ __forceinline__ void dot(uint4 w, uint4 x, S& sum) {
  if constexpr (sizeof(W) == 4) {
    sum.add(words_as_floats(w.x, w.y), words_as_floats(x.x, x.y));
    sum.add(words_as_floats(w.z, w.w), words_as_floats(x.z, x.w));
  } else {
    sum.add(widen_pair(W{}, w.x), widen_pair(W{}, x.x));
    sum.add(widen_pair(W{}, w.y), widen_pair(W{}, x.y));
    sum.add(widen_pair(W{}, w.z), widen_pair(W{}, x.z));
    sum.add(widen_pair(W{}, w.w), widen_pair(W{}, x.w));
  }
}

// The sum over a warp, the same bits in every lane.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int distance = 16; distance; distance /= 2) value += from_neighbour(value, distance);
  return value;
}

// This thread's share of the sum of x^2 over k elements.
template <class X>
__device__ __forceinline__ float squares(const X* x, int k) {
  float sum = 0;
#pragma unroll 4
  for (int e = threadIdx.x; e < k; e += kThreads) {
    const float value = widen(x[e]);
    sum = fmaf(value, value, sum);
  }
  return sum;
}

// 1 / sqrt(mean(x^2) + eps) of one row of x, computed by the whole block with kWarps values of shared memory.
template <class W>
__device__ __forceinline__ float inverse_rms(const Arguments& a, int m, float* partial) {
  const int64_t begin = int64_t(m) * a.k;
  const float sum = warp_sum(a.x_is_float ? squares(static_cast<const float*>(a.x) + begin, a.k)
                                          : squares(static_cast<const W*>(a.x) + begin, a.k));
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  block_barrier();
  float total = 0;
  for (int w = 0; w < kWarps; ++w) total += partial[w];
  block_barrier();  // read by all: the memory is used again
  return rsqrtf(total / float(a.k) + a.eps);
}

// x[first + j] (times scale and norm) to target[j] for `count` places, rounded to W; zeros outside the row's k elements.
template <class W, class X>
__device__ __forceinline__ void stage(const X* x, int first, int count, int k, const Arguments& a, float scale, W* target) {
#pragma unroll 4
  for (int j = int(threadIdx.x); j < count; j += kThreads) {
    const int e = first + j;
    float value = 0;
    if (0 <= e && e < k) {
      value = widen(x[e]);
      if (a.norm) value = value * scale * load_as_float<W>(a.norm, a.norm_is_float, e);
    }
    narrow(value, target[j]);
  }
}

template <class W, int kRows, int kMatrices>
__global__ void __launch_bounds__(kThreads, blocks_per_processor(kMatrices)) skinny_linear(const Arguments a) {
  constexpr int kV = kWideBytes / sizeof(W);
  constexpr int kUnroll = loads_in_flight(kMatrices) / kMatrices;
  constexpr int kSums = kRows * kMatrices;
  __shared__ float partial[2 * kWarps * kSums];

  const Plan& plan = a.plan;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int part = warp % plan.split;      // of the row
  const int width = 32 * plan.split;       // threads that share a row
  const int at_a_time = kWarps / plan.split;
  const int block_rows = at_a_time * plan.rows_per_warp;
  const auto row_of = [&](int i) {
    return block_row(int(blockIdx.x), i * at_a_time + warp / plan.split, block_rows, plan.period);
  };

  RowCover cover[kMatrices];
  int most_chunks = 0;
#pragma unroll
  for (int w = 0; w < kMatrices; ++w) {
    const int first = block_row(int(blockIdx.x), 0, block_rows, plan.period);
    cover[w] = cover_row(phase_of(reinterpret_cast<uint64_t>(a.weight[w]), first, a.stride[w], sizeof(W)), a.k, kV);
    most_chunks = larger(most_chunks, cover[w].chunks);
  }
  const int steps = ceil_div(most_chunks, kUnroll * width);
  const int panels = larger(1, ceil_div(steps, plan.steps_per_panel));

  // The ring: a load of the next step, or of the next row's first step, takes the place of the weights just used. A
  // warp's chunks of one step lie together, 32 for each u: their distances are constants in the instructions.
  const uint64_t policy = streaming_policy();
  const int lane_chunk = part * kUnroll * 32 + lane, step_chunks = kUnroll * width;
  const auto row_start = [&](int w, int row) { return static_cast<const W*>(a.weight[w]) + row * a.stride[w]; };
  const W* next[kMatrices];  // this lane's first chunk of the step to load
  int left[kMatrices];       // chunks from there to the row's end
  const auto seek = [&](int i) {
    const int row = i < plan.rows_per_warp ? row_of(i) : a.n;
#pragma unroll
    for (int w = 0; w < kMatrices; ++w) {
      next[w] = row_start(w, row) + cover[w].head + lane_chunk * kV;
      left[w] = row < a.n ? cover[w].chunks - lane_chunk : 0;
    }
  };
  uint4 ring[kUnroll][kMatrices];
  const auto fetch = [&](int w, int u) { ring[u][w] = load_weights(next[w] + u * 32 * kV, policy, u * 32 < left[w]); };
  seek(0);
#pragma unroll
  for (int u = 0; u < kUnroll; ++u)
#pragma unroll
    for (int w = 0; w < kMatrices; ++w) fetch(w, u);

  // Weights are constant; everything below may have been written by the kernel before this one.
  let_next_kernel_start();
  wait_for_previous_kernel();

  if (a.skip && *a.skip) {
    for (int i = 0; i < plan.rows_per_warp; ++i) {
      const int row = row_of(i);
      const int64_t at = int64_t(lane) * a.n + row;
      if (part == 0 && lane < kRows && row < a.n)
        store_as<W>(a.out, a.out_is_float, at, a.residual ? load_as_float<W>(a.residual, a.out_is_float, at) : 0.0f);
    }
    return;
  }

  float scale[kRows];
#pragma unroll
  for (int m = 0; m < kRows; ++m) scale[m] = a.norm ? inverse_rms<W>(a, m, partial) : 1.0f;

  uint4* const shared = dynamic_shared();  // [copies][kRows][panel_slots]
  const auto x_row = [&](int w, int m) { return ((plan.copies == 2 ? w : 0) * kRows + m) * plan.panel_slots; };
  const auto stage_panel = [&](int panel) {
#pragma unroll
    for (int w = 0; w < kMatrices; ++w) {
      if (w >= plan.copies) break;
      const Panel staged = panel_of(cover[w], panel, panels, plan.steps_per_panel * step_chunks);
      const int first = staged.begin * kV - cover[w].phase, count = (staged.end - staged.begin) * kV;
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
        W* const target = reinterpret_cast<W*>(shared + x_row(w, m));
        const int64_t begin = int64_t(m) * a.k;
        if (a.x_is_float) stage(static_cast<const float*>(a.x) + begin, first, count, a.k, a, scale[m], target);
        else stage(static_cast<const W*>(a.x) + begin, first, count, a.k, a, scale[m], target);
      }
    }
  };

  const auto has_edge = [&](const RowCover& rows, int row) { return part == 0 && row < a.n && lane < rows.edges(); };
  for (int i = 0; i < plan.rows_per_warp; ++i) {
#pragma unroll
    for (int w = 0; w < kMatrices; ++w) cover[w] = cover_row(recomputed(cover[w].phase), a.k, kV);
    const int row = row_of(i);
    W edge[kMatrices] = {};  // used at the row's end: asked for now, they arrive meanwhile
#pragma unroll
    for (int w = 0; w < kMatrices; ++w)
      if (has_edge(cover[w], row)) edge[w] = load_weight(row_start(w, row) + cover[w].edge_element(lane, a.k));

    Sum<kSums == 1> sums[kMatrices][kRows];
    int step = 0;
    for (int panel = 0; panel < panels; ++panel) {
      if (i == 0 || panels > 1) {
        if (i + panel) block_barrier();  // everyone has read the panel that this one replaces
        stage_panel(panel);
        block_barrier();
      }
      int slot[kMatrices];  // of x, for this lane's first chunk of the step
#pragma unroll
      for (int w = 0; w < kMatrices; ++w) slot[w] = x_row(w, 0) + (panel ? 0 : cover[w].first) + lane_chunk;
      for (const int end = smaller(steps, (panel + 1) * plan.steps_per_panel); step < end; ++step) {
        int here[kMatrices];
#pragma unroll
        for (int w = 0; w < kMatrices; ++w) {
          here[w] = left[w];
          next[w] += step_chunks * kV;
          left[w] -= step_chunks;
        }
        if (step + 1 == steps) seek(i + 1);
#pragma unroll
        for (int u = 0; u < kUnroll; ++u)
#pragma unroll
          for (int w = 0; w < kMatrices; ++w) {
            if (u * 32 < here[w])
#pragma unroll
              for (int m = 0; m < kRows; ++m)
                dot<W>(ring[u][w], shared[slot[w] + u * 32 + m * plan.panel_slots], sums[w][m]);
            fetch(w, u);
          }
#pragma unroll
        for (int w = 0; w < kMatrices; ++w) slot[w] += step_chunks;
      }
#pragma unroll
      for (int w = 0; w < kMatrices; ++w) {
        const RowCover rows = cover_row(recomputed(cover[w].phase), a.k, kV);
        const Panel staged = panel_of(rows, panel, panels, plan.steps_per_panel * step_chunks);
        const int at = rows.phase + rows.edge_element(lane, a.k);
        if (has_edge(rows, row) && staged.begin * kV <= at && at < staged.end * kV)
#pragma unroll
          for (int m = 0; m < kRows; ++m) {
            const W* const x = reinterpret_cast<const W*>(shared + x_row(w, m));
            sums[w][m].even = fmaf(widen(edge[w]), widen(x[at - staged.begin * kV]), sums[w][m].even);
          }
      }
    }

    const bool writes = part == 0 && lane < kRows && row < a.n;
    float bias[kMatrices] = {}, residual = 0;  // they arrive during the reduction; earlier there are no registers left
#pragma unroll
    for (int w = 0; w < kMatrices; ++w)
      if (writes && a.bias[w]) bias[w] = load_as_float<W>(a.bias[w], a.bias_is_float[w], row);
    if (kMatrices == 1 && writes && a.residual)
      residual = load_as_float<W>(a.residual, a.out_is_float, int64_t(lane) * a.n + row);
    float total[kMatrices] = {};  // of activation row `lane`
    float* const mine = partial + (i & 1) * kWarps * kSums;  // two in turn: one barrier a row is enough
#pragma unroll
    for (int w = 0; w < kMatrices; ++w)
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
        const float value = warp_sum(sums[w][m].even + sums[w][m].odd);
        if (plan.split == 1 ? lane == m : false) total[w] = value;
        if (plan.split > 1 && lane == 0) mine[warp * kSums + w * kRows + m] = value;
      }
    if (plan.split > 1) {
      block_barrier();
      if (part == 0 && lane < kRows)
#pragma unroll
        for (int w = 0; w < kMatrices; ++w)
          for (int s = 0; s < plan.split; ++s) total[w] += mine[(warp + s) * kSums + w * kRows + lane];
    }
    if (writes) {
      float value = total[0] + bias[0];
      if constexpr (kMatrices == 2) value = value / (1.0f + expf(-value)) * (total[1] + bias[1]);
      store_as<W>(a.out, a.out_is_float, int64_t(lane) * a.n + row, value + residual);
    }
  }
}

}  // namespace pyprune::cuda
