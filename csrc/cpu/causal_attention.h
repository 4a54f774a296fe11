// Causal attention of one KV head, forth and back, in float32; compiled once per instruction set. Queries go in blocks:
// the scores of a block with all keys that it sees lie in the core's caches, and no key behind a block is read.
#pragma once

#include "small_gemm.h"

namespace {

using pyprune::cpu::CausalHeads;
using pyprune::cpu::Heads;

// Rows [begin, begin + count) of a head as float32 times `scale`, zeros to the end of each row.
void widen_rows(const Heads& from, int64_t head, int64_t begin, int64_t count, int64_t head_dim, float scale, float* out, int64_t stride) {
  for (int64_t t = 0; t < count; ++t, out += stride) {
    const Const row{from.at(head, begin + t), from.type};
    each(stride, [&](int64_t i, int64_t) {
      (head_dim > i ? load_any(row, i, head_dim - i) * Vec::all(scale) : Vec::zero()).store(out + i);
    });
  }
}

// The same for all tokens, transposed: [head_dim, stride], zeros to the end of each row.
void widen_transposed(const Heads& from, int64_t tokens, int64_t head_dim, float* out, int64_t stride) {
  with_type(from.type, [&](auto* t) {
    for (int64_t token = 0; token < stride; ++token) {
      const auto* row = static_cast<decltype(t)>(from.at(0, token < tokens ? token : 0));
      for (int64_t d = 0; d < head_dim; ++d) out[d * stride + token] = token < tokens ? to_float(row[d]) : 0.0f;
    }
  });
}

void narrow_row(const float* row, int64_t head_dim, float scale, const Heads& to, int64_t head, int64_t t) {
  each(head_dim, [&](int64_t i, int64_t left) { store_any(load_some(row + i, left) * Vec::all(scale), to.at(head, t), to.type, i, left); });
}

// Calls f(first column, those of its lanes that are below n) for whole vectors up to n, and fills the row with zeros to
// its end.
template <class F>
ALWAYS_INLINE void seen(float* row, int64_t n, int64_t end, F&& f) {
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) f(j, ~0u);
  if (j < n) f(j, (1u << (n - j)) - 1), j += kLanes;
  for (; j < end; j += kLanes) Vec::zero().store(row + j);
}

void causal_attention(const CausalHeads& h, float* memory) {
  const int64_t wide = CausalHeads::filled(h.head_dim), long_row = CausalHeads::filled(h.tokens);
  float *keys = memory, *values = keys + h.head_dim * long_row, *q = values + h.tokens * wide, *out = q + CausalHeads::kBlock * wide,
        *scores = out + CausalHeads::kBlock * wide;
  widen_transposed(h.k, h.tokens, h.head_dim, keys, long_row);
  widen_rows(h.v, 0, 0, h.tokens, h.head_dim, 1.0f, values, wide);
  for (int64_t head = 0; head < h.heads; ++head)
    for (int64_t begin = 0; begin < h.tokens; begin += CausalHeads::kBlock) {
      const int64_t end = begin + CausalHeads::kBlock < h.tokens ? begin + CausalHeads::kBlock : h.tokens;
      const int64_t rows = end - begin, columns = CausalHeads::filled(end);
      float share[CausalHeads::kBlock];
      widen_rows(h.q, head, begin, rows, h.head_dim, h.scale, q, wide);
      multiply({q, wide, 1}, keys, long_row, scores, long_row, rows, columns, h.head_dim);
      for (int64_t m = 0; m < rows; ++m) {
        float* row = scores + m * long_row;
        const int64_t n = begin + m + 1;
        const float top = highest_of(row, n, kNothing);
        const Vec below = Vec::all(-top);
        Vec total = Vec::zero();
        seen(row, n, columns, [&](int64_t j, uint32_t lanes) ALWAYS_INLINE_LAMBDA {
          const Vec e = exp(Vec::load(row + j) + below).kept(lanes);
          e.store(row + j);
          total = total + e;
        });
        const float sum = total.sum();
        share[m] = 1.0f / sum;
        h.log_sum[head * h.tokens + begin + m] = top + __builtin_logf(sum);
      }
      multiply({scores, long_row, 1}, values, wide, out, wide, rows, wide, end);
      for (int64_t m = 0; m < rows; ++m) narrow_row(out + m * wide, h.head_dim, share[m], h.out, head, begin + m);
    }
}

// With P the probabilities and D = rowsum(slope * out), per query head:
//   dv = P^T slope,   dS = P * (slope v^T - D),   dq = scale dS k,   dk = scale dS^T q
void causal_attention_backward(const CausalHeads& h, float* memory) {
  const int64_t wide = CausalHeads::filled(h.head_dim), long_row = CausalHeads::filled(h.tokens), block = CausalHeads::kBlock;
  float *keys_across = memory, *values_across = keys_across + h.head_dim * long_row, *keys = values_across + h.head_dim * long_row,
        *dk = keys + h.tokens * wide, *dv = dk + h.tokens * wide, *q = dv + h.tokens * wide, *slope = q + block * wide,
        *dq = slope + block * wide, *p = dq + block * wide, *ds = p + block * long_row;
  widen_transposed(h.k, h.tokens, h.head_dim, keys_across, long_row);
  widen_transposed(h.v, h.tokens, h.head_dim, values_across, long_row);
  widen_rows(h.k, 0, 0, h.tokens, h.head_dim, 1.0f, keys, wide);
  for (int64_t i = 0; i < 2 * h.tokens * wide; ++i) dk[i] = 0.0f;  // and dv behind it
  for (int64_t head = 0; head < h.heads; ++head)
    for (int64_t begin = 0; begin < h.tokens; begin += block) {
      const int64_t end = begin + block < h.tokens ? begin + block : h.tokens;
      const int64_t rows = end - begin, columns = CausalHeads::filled(end);
      widen_rows(h.q, head, begin, rows, h.head_dim, h.scale, q, wide);
      widen_rows(h.slope, head, begin, rows, h.head_dim, 1.0f, slope, wide);
      multiply({q, wide, 1}, keys_across, long_row, p, long_row, rows, columns, h.head_dim);
      multiply({slope, wide, 1}, values_across, long_row, ds, long_row, rows, columns, h.head_dim);
      for (int64_t m = 0; m < rows; ++m) {
        float *probability = p + m * long_row, *row = ds + m * long_row;
        const Const out{h.out.at(head, begin + m), h.out.type};
        Vec dot = Vec::zero();
        each(h.head_dim, [&](int64_t i, int64_t left) { dot = Vec::fma(load_any(out, i, left), Vec::load(slope + m * wide + i), dot); });
        const Vec below = Vec::all(-h.log_sum[head * h.tokens + begin + m]), mean = Vec::all(dot.sum());
        const auto zeros = [](int64_t, uint32_t) {};
        seen(probability, begin + m + 1, columns, [&](int64_t j, uint32_t lanes) ALWAYS_INLINE_LAMBDA {
          const Vec e = exp(Vec::load(probability + j) + below).kept(lanes);
          e.store(probability + j);
          ((Vec::load(row + j) - mean) * e).kept(lanes).store(row + j);
        });
        seen(row, begin + m + 1, columns, zeros);
      }
      multiply({p, 1, long_row}, slope, wide, dv, wide, end, wide, rows, true);
      multiply({ds, 1, long_row}, q, wide, dk, wide, end, wide, rows, true);
      multiply({ds, long_row, 1}, keys, wide, dq, wide, rows, wide, end);
      for (int64_t m = 0; m < rows; ++m) narrow_row(dq + m * wide, h.head_dim, h.scale, h.dq, head, begin + m);
    }
  for (int64_t t = 0; t < h.tokens; ++t) {
    narrow_row(dk + t * wide, h.head_dim, 1.0f, h.dk, 0, t);
    narrow_row(dv + t * wide, h.head_dim, 1.0f, h.dv, 0, t);
  }
}

}  // namespace
