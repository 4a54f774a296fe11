// The kernel: a linear of one or two activation rows, any K and N, any row stride.
//
// At batch 1 or 2 a linear is bound by memory bandwidth, so everything serves the reading of weights: 16-byte loads for
// every row, also where K is odd and rows start anywhere (row_cover.h); six or eight loads in flight in each thread, in a
// ring of registers that continues across rows; many small blocks; the first loads issued before the previous kernel has
// ended (sm_90). x is normalised, rounded to the weights' type and kept in shared memory at the phase of the block's
// rows, so that it too is read 16 bytes at a time. Products are summed in float32 in a fixed order: the same input at the
// same alignment gives the same bits.
//
// Its device functions come from instructions.cuh, or from the emulator that runs this file on a CPU for the tests
// (tests/cuda/emulator.h).
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

// 16 bytes of activations as float32.
template <class X>
struct Unpacked {
  static constexpr int kCount = kWideBytes / sizeof(X);
  float values[kCount];

  __device__ __forceinline__ explicit Unpacked(uint4 words) {
    const uint32_t word[4] = {words.x, words.y, words.z, words.w};
    if constexpr (sizeof(X) == 4) {
#pragma unroll
      for (int i = 0; i < 4; ++i) values[i] = word_as_float(word[i]);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 pair = widen_pair(X{}, word[i]);
        values[2 * i] = pair.x;
        values[2 * i + 1] = pair.y;
      }
    }
  }
};

template <class W>
__device__ __forceinline__ uint4 packed(const float (&values)[kWideBytes / sizeof(W)]) {
  uint32_t word[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(W) == 4) {
      word[i] = float_as_word(values[i]);
    } else {
      W low, high;
      narrow(values[2 * i], low);
      narrow(values[2 * i + 1], high);
      word[i] = uint32_t(low.bits) | uint32_t(high.bits) << 16;
    }
  }
  return {word[0], word[1], word[2], word[3]};
}

// The block's threads together go over x[begin .. end): whole(e, 16 bytes from element e on) wherever 16 aligned bytes
// lie inside, one(e) for the elements before and after those. Element by element this took longer than the weights.
template <int kAtOnce, class X, class Whole, class One>
__device__ __forceinline__ void walk(const X* x, int begin, int end, Whole whole, One one) {
  constexpr int kX = kWideBytes / sizeof(X);
  const int phase = int(reinterpret_cast<uint64_t>(x + begin) / sizeof(X) % kX);
  const RowCover cover = cover_row(phase, end - begin, kX);
#pragma unroll kAtOnce
  for (int i = int(threadIdx.x); i < cover.chunks; i += kThreads) {
    const int e = begin + cover.head + i * kX;
    whole(e, load_wide(x + e));
  }
  if (int(threadIdx.x) < cover.edges()) one(begin + cover.edge_element(int(threadIdx.x), end - begin));
}

// This thread's share of the sum of x^2 over k elements.
template <class X>
__device__ __forceinline__ float squares(const X* x, int k) {
  float sum = 0;
  walk<1>(
      x, 0, k,
      [&](int, uint4 words) {
        const Unpacked<X> chunk(words);
#pragma unroll
        for (int i = 0; i < Unpacked<X>::kCount; ++i) sum = fmaf(chunk.values[i], chunk.values[i], sum);
      },
      [&](int e) { sum = fmaf(widen(x[e]), widen(x[e]), sum); });
  return sum;
}

// 1 / sqrt(mean(x^2) + eps) of one row of x, computed by the whole block with kWarps values of shared memory.
template <class W>
__device__ __forceinline__ float inverse_rms(const Arguments& a, int m, float* partial) {
  const int64_t begin = int64_t(m) * a.x_stride;
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
  constexpr int kX = Unpacked<X>::kCount;
  const int begin = smaller(larger(first, 0), k), end = larger(begin, smaller(first + count, k));
  const auto put = [&](int e, const Unpacked<X>& chunk) {
    const int at = e - first;
    if constexpr (sizeof(X) == sizeof(W)) {
      if (at % kX == 0) {
        *reinterpret_cast<uint4*>(target + at) = packed<W>(chunk.values);
        return;
      }
    }
#pragma unroll
    for (int i = 0; i < kX; ++i) narrow(chunk.values[i], target[at + i]);
  };
  if (a.norm) {
    const bool alike = a.norm_is_float == (sizeof(X) == 4) && reinterpret_cast<uint64_t>(a.norm) % kWideBytes == 0;
    walk<1>(
        x, begin, end,
        [&](int e, uint4 words) {
          Unpacked<X> chunk(words);
          if (alike && e % kX == 0) {
            const Unpacked<X> norm(load_wide(static_cast<const X*>(a.norm) + e));
#pragma unroll
            for (int i = 0; i < kX; ++i) chunk.values[i] = chunk.values[i] * scale * norm.values[i];
          } else {
#pragma unroll
            for (int i = 0; i < kX; ++i)
              chunk.values[i] = chunk.values[i] * scale * load_as_float<W>(a.norm, a.norm_is_float, e + i);
          }
          put(e, chunk);
        },
        [&](int e) { narrow(widen(x[e]) * scale * load_as_float<W>(a.norm, a.norm_is_float, e), target[e - first]); });
  } else {
    walk<2>(
        x, begin, end, [&](int e, uint4 words) { put(e, Unpacked<X>(words)); },
        [&](int e) { narrow(widen(x[e]), target[e - first]); });
  }
  const int before = begin - first, after = smaller(count, first + count - end);
  for (int j = int(threadIdx.x); j < before + after; j += kThreads)
    narrow(0.0f, target[j < before ? j : count - after + j - before]);
}

// Where a row's two halves belong: which of the three projections, its head there, the pair in that head.
struct Pair {
  int section, head, i;
};
__device__ __forceinline__ Pair pair_of(const Heads& h, int row) {
  const int head = row / h.half;
  const int section = head < h.heads ? 0 : head < h.heads + h.kv_heads ? 1 : 2;
  return {section, head - (section == 0 ? 0 : h.heads + (section - 1) * h.kv_heads), row - head * h.half};
}

// The two halves of a head's pair `row` of activation row m, both with their bias: rotated and put in their place. A
// position or slot outside its range (`position` < 0) has none: its query is NaN, so that nobody takes it for a result.
template <class W>
__device__ __forceinline__ void rotate_and_append(const Arguments& a, int m, int row, int position, int slot, float left,
                                                  float right, float c, float s) {
  const Heads& h = a.heads;
  const Pair at = pair_of(h, row);
  if (at.section < 2) {
    const float turned = left * c - right * s;
    right = right * c + left * s;
    left = turned;
  }
  if (at.section == 0) {
    if (position < 0) left = right = word_as_float(0x7fc00000u);
    const int64_t to = (int64_t(m) * h.heads + at.head) * 2 * h.half + at.i;
    store_as<W>(a.out, a.out_is_float, to, left);
    store_as<W>(a.out, a.out_is_float, to + h.half, right);
  } else if (position >= 0) {
    const int kv = at.section - 1;
    W* const to = static_cast<W*>(h.cache[kv]) + m / h.tokens * h.batch_stride[kv] + at.head * h.head_stride[kv] +
                  slot * h.row_stride[kv] + at.i;
    narrow(left, to[0]);
    narrow(right, to[h.half]);
  }
}

template <class W, int kRows, Form kForm>
__global__ void __launch_bounds__(kThreads, blocks_per_processor(matrices_of(kForm), kRows, sizeof(W)))
    skinny_linear(const Arguments a) {
  constexpr int kMatrices = matrices_of(kForm);
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
  const auto row_start = [&](int w, int row) {
    if constexpr (kForm == Form::qkv_rope) {
      const Heads& h = a.heads;
      const Pair at = pair_of(h, row);
      return static_cast<const W*>(h.weight[at.section]) + (int64_t(at.head * 2 + w) * h.half + at.i) * h.stride[at.section];
    } else {
      return static_cast<const W*>(a.weight[w]) + row * a.stride[w];
    }
  };
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
  // Of a skipped sublayer no weight is read: the ring would be a fifth of them. The flag is as constant as the weights.
  const bool skipped = a.skip && *a.skip;
#pragma unroll
  for (int w = 0; w < kMatrices; ++w) left[w] = skipped ? 0 : left[w];
#pragma unroll
  for (int u = 0; u < kUnroll; ++u)
#pragma unroll
    for (int w = 0; w < kMatrices; ++w) fetch(w, u);

  // Weights are constant; everything below may have been written by the kernel before this one.
  let_next_kernel_start();
  wait_for_previous_kernel();

  if (skipped) {
    for (int i = 0; i < plan.rows_per_warp; ++i) {
      const int row = row_of(i);
      if (!(part == 0 && lane < kRows && row < a.n)) continue;
      if constexpr (kForm == Form::qkv_rope) {  // zeros for queries; the caches stay as they are
        const Pair to = pair_of(a.heads, row);
        const int64_t query = (int64_t(lane) * a.heads.heads + to.head) * 2 * a.heads.half + to.i;
        if (to.section == 0) {
          store_as<W>(a.out, a.out_is_float, query, 0.0f);
          store_as<W>(a.out, a.out_is_float, query + a.heads.half, 0.0f);
        }
      } else {
        const float value = a.residual ? load_as_float<W>(a.residual, a.out_is_float, int64_t(lane) * a.n + row) : 0.0f;
        store_as<W>(a.out, a.out_is_float, int64_t(lane) * a.out_stride + row, value);
      }
    }
    return;
  }

  int position = -1, slot = 0;  // of activation row `lane`
  if constexpr (kForm == Form::qkv_rope) {
    const Heads& h = a.heads;
    if (lane < kRows) {
      const int64_t given = h.positions[lane], place = h.slots ? h.slots[lane] : given;
      if (0 <= given && given < h.limit && 0 <= place && place < h.slot_limit) position = int(given), slot = int(place);
    }
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
        const int64_t begin = int64_t(m) * a.x_stride;
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
    // They arrive during the reduction; earlier there are no registers left. qkv_rope: the angle's cosine and sine.
    float bias[kMatrices] = {}, residual = 0, c = 1, s = 0;
    if constexpr (kForm == Form::qkv_rope) {
      const Heads& h = a.heads;
      const Pair at = pair_of(h, row);
#pragma unroll
      for (int w = 0; w < kMatrices; ++w)
        if (writes && h.bias[at.section])
          bias[w] = load_as_float<W>(h.bias[at.section], h.bias_is_float[at.section], (at.head * 2 + w) * h.half + at.i);
      if (writes && at.section < 2 && position >= 0) {
        c = h.cos[position * h.cos_stride + at.i];
        s = h.sin[position * h.sin_stride + at.i];
      }
    } else {
#pragma unroll
      for (int w = 0; w < kMatrices; ++w)
        if (writes && a.bias[w]) bias[w] = load_as_float<W>(a.bias[w], a.bias_is_float[w], row);
    }
    if (kForm == Form::linear && writes && a.residual)
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
          for (int other = 0; other < plan.split; ++other) total[w] += mine[(warp + other) * kSums + w * kRows + lane];
    }
    if (writes) {
      float value = total[0] + bias[0];
      if constexpr (kForm == Form::qkv_rope) {
        rotate_and_append<W>(a, lane, row, position, slot, value, total[1] + bias[1], c, s);
      } else {
        if constexpr (kForm == Form::gate_up) value = value / (1.0f + expf(-value)) * (total[1] + bias[1]);
        store_as<W>(a.out, a.out_is_float, int64_t(lane) * a.out_stride + row, value + residual);
      }
    }
  }
}

}  // namespace pyprune::cuda
