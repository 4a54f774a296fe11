// The stages of a decoder, each as data and a function of a task's number: plain memory, one thread, no torch.
//
// Tasks of a stage are independent, and no bit of a result depends on how they are cut or who runs them: so an operator
// spreads one stage over torch's threads (tensors.h), and a decode step takes a team through all of them (decode_step.cpp).
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <type_traits>
#include <vector>

#include "kernels.h"
#include "scratch.h"

namespace pyprune::cpu {

// Up to this many activation rows are skinny: they meet the weights in one pass. More is a GEMM: in several passes (row_groups.h),
// or torch's.
inline constexpr int64_t kSkinnyRows = 64;
// Weight rows of a task at most: one block of memory, its results in the thread's L1. In a GEMM twice as many: results then
// are written a longer part of a row at a time (SmolLM2's sizes: 1.1 times as fast, 2 cores of a Zen 4).
inline constexpr int64_t kBlock = 32, kGemmBlock = 64;
inline constexpr int64_t kResults = kSkinnyRows * kGemmBlock;
// Up to this many tokens of a sequence attend as one task of a KV split.
inline constexpr int64_t kSplitTokens = 16;

// Rows of weight for a task when `n` are shared by `threads`: eight tasks a thread where that leaves a tile each.
inline int64_t block_rows(int64_t n, int64_t threads) {
  const int64_t even = n / (8 * std::max<int64_t>(1, threads)) / 4 * 4;
  return std::clamp<int64_t>(even, 4, kBlock);
}

// Tasks side by side go as one up to this length of their weights: the processor's prefetcher begins anew with every
// block of memory. Gate and up take turns, so theirs were 36 KB for SmolLM2, and its step took 1.01 to 1.09 times as long
// (2 cores of a Zen 4 whose memory gave 45 GB/s; no difference where it gave 33).
inline constexpr int64_t kTaskBytes = 128 << 10;

// The weights that tasks read first, all or the first kTaskBytes of them.
struct Reads {
  const void* data = nullptr;
  int64_t bytes = 0;
};

// A stage of weights takes tasks [begin, end) as one, and gets what its thread reads next.
template <class Stage>
inline constexpr bool kStreams = std::is_invocable_v<const Stage&, int64_t, int64_t, const void*>;

inline Reads rows_read(const Const& weight, int64_t begin, int64_t end) {
  return {weight.row(begin), (end - begin) * weight.stride * size_of(weight.type)};
}

// How many tasks of `block` weight rows go as one; the results of `count` activation rows have room.
inline int64_t tasks_together(const Const& weight, int64_t block, int64_t count) {
  const int64_t bytes = std::max<int64_t>(1, rows_read(weight, 0, block).bytes);
  return std::clamp<int64_t>(kTaskBytes / bytes, 1, kSkinnyRows * kBlock / (std::max<int64_t>(1, count) * block));
}

// Activation rows [begin, end) of a stage, up to kSkinnyRows.
struct Span {
  int64_t begin = 0, end = 0;
  int64_t count() const { return end - begin; }
};

// Activations as a matrix of contiguous rows.
struct Matrix {
  Const view;
  int64_t count = 0, width = 0;
};

// RMSNorm (where norm is given) and packing; a task is the rows that the layout keeps together, mostly one.
struct Pack {
  const Kernels& k;
  Matrix x;
  Const norm;
  float eps;
  DType weight_type;
  char* data;

  int64_t packed_bytes() const { return k.packed_bytes(weight_type, x.width, x.count); }
  int64_t together() const { return k.packed_together(weight_type); }
  int64_t tasks() const { return (x.count + together() - 1) / together(); }
  int64_t bytes() const { return x.count * x.width; }
  void operator()(int64_t task) const {
    const int64_t begin = task * together(), end = std::min(x.count, begin + together());
    for (int64_t m = begin; m < end; ++m) {
      const void* row = x.view.row(m);
      const float scale = norm.data ? k.inverse_rms(row, x.view.type, x.width, eps) : 1.0f;
      k.pack(weight_type, row, x.view.type, norm.data, norm.type, scale, x.width, m, x.count, data);
    }
  }
};

// Prefetches a line that will be written, taking it from other cores. Processors without the instruction skip it; the compiler
// emits it only for those that have it, so it is written out here.
inline void prefetch_to_write(const char* line) {
#if defined(__x86_64__)
  asm volatile("prefetchw %0" : : "m"(*line));
#else
  __builtin_prefetch(line, 1);
#endif
}

// Finishes the rows of a span in order. A GEMM's rows lie far apart (`far`), a line or two in a page, in other caches or none,
// and often in the same set of L1: what is written to them, and added, is prefetched some rows before.
template <class Finish>
inline void finish_rows(const Mut& out, const Const& added, int64_t stride, int64_t first, int64_t rows, Span span, bool far,
                        const Finish& finish) {
  constexpr int64_t distance = 8;
  for (int64_t m = span.begin; m < span.end; ++m) {
    if (far && m + distance < span.end) {
      const char* later = static_cast<const char*>(out.at((m + distance) * stride + first));
      for (int64_t byte = 0; byte < rows * size_of(out.type); byte += 64) prefetch_to_write(later + byte);
      if (added.data) {
        later = static_cast<const char*>(added.at((m + distance) * stride + first));
        for (int64_t byte = 0; byte < rows * size_of(added.type); byte += 64) __builtin_prefetch(later + byte);
      }
    }
    finish(m);
  }
}

// The stages of weights multiply blocks [begin, end) of weight rows by a span of activation rows, which begins where a packed
// group does (`packed_together`); as a decode step's stages they take all activation rows at once.

// out = x weight^T (+ bias) (+ residual); a task is `block` rows of weight.
struct Project {
  const Kernels& k;
  const char* x;  // packed
  int64_t count, width;
  Const weight;
  int64_t n, block;
  Const bias, residual;
  Mut out;

  int64_t tasks() const { return (n + block - 1) / block; }
  int64_t bytes() const { return n * width * size_of(weight.type); }
  void finish(int64_t m, int64_t first, int64_t rows, const float* values) const {
    const Const y = residual.data ? Const{residual.at(m * n + first), residual.type} : Const{};
    k.add(values, y.data, y.type, bias.data ? bias.at(first) : nullptr, bias.type, rows, out.at(m * n + first), out.type);
  }
  Reads reads(int64_t begin, int64_t end) const { return rows_read(weight, begin * block, std::min(n, end * block)); }
  int64_t together() const { return tasks_together(weight, block, count); }
  void multiply(int64_t begin, int64_t end, Span span, const void* next) const {
    float results[kResults];
    const int64_t first = begin * block, rows = std::min(n, end * block) - first;
    const char* packed = x + k.packed_bytes(weight.type, width, span.begin);
    k.linear({weight.row(first), weight.type, weight.stride}, rows, width, packed, span.count(), results, rows, next);
    finish_rows(out, residual, n, first, rows, span, count > kSkinnyRows,
                [&](int64_t m) { finish(m, first, rows, results + (m - span.begin) * rows); });
  }
  void operator()(int64_t begin, int64_t end, const void* next = nullptr) const { multiply(begin, end, {0, count}, next); }
};

// out = silu(x gate^T + gate_bias) * (x up^T + up_bias); a task is `block` rows of both weights.
struct GateUp {
  const Kernels& k;
  const char* x;  // packed
  int64_t count, width;
  Const gate, up;
  int64_t n, block;
  Const gate_bias, up_bias;
  Mut out;

  int64_t tasks() const { return (n + block - 1) / block; }
  int64_t bytes() const { return 2 * n * width * size_of(gate.type); }
  void finish(int64_t m, int64_t first, int64_t rows, const float* gates, const float* ups) const {
    const DType bias_type = gate_bias.data ? gate_bias.type : up_bias.type;
    k.silu_mul(gates, ups, gate_bias.data ? gate_bias.at(first) : nullptr, up_bias.data ? up_bias.at(first) : nullptr,
               bias_type, rows, out.at(m * n + first), out.type);
  }
  Reads reads(int64_t begin, int64_t end) const { return rows_read(gate, begin * block, std::min(n, end * block)); }
  int64_t together() const { return tasks_together(gate, block, count); }
  void multiply(int64_t begin, int64_t end, Span span, const void* next) const {
    float gates[kResults], ups[kResults];
    const int64_t first = begin * block, rows = std::min(n, end * block) - first;
    const char* packed = x + k.packed_bytes(gate.type, width, span.begin);
    k.linear({gate.row(first), gate.type, gate.stride}, rows, width, packed, span.count(), gates, rows, up.row(first));
    k.linear({up.row(first), up.type, up.stride}, rows, width, packed, span.count(), ups, rows, next);
    finish_rows(out, {}, n, first, rows, span, count > kSkinnyRows, [&](int64_t m) {
      const int64_t row = (m - span.begin) * rows;
      finish(m, first, rows, gates + row, ups + row);
    });
  }
  void operator()(int64_t begin, int64_t end, const void* next = nullptr) const { multiply(begin, end, {0, count}, next); }
};

// A KV cache [batch, kv_heads, length, head_dim], the last dimension contiguous.
struct Cache {
  char* data = nullptr;
  DType type = DType::f32;
  int64_t batch = 0, heads = 0, length = 0, head_dim = 0, batch_stride = 0, head_stride = 0, row_stride = 0;

  void* at(int64_t b, int64_t h, int64_t row) const {
    return data + (b * batch_stride + h * head_stride + row * row_stride) * size_of(type);
  }
};

// Q, K and V of each row: projection, bias, q/k-norm, RoPE; q to `q_out`, k and v into the caches.
struct Qkv {
  enum Kind { query, key, value };

  const Kernels& k;
  const char* x;  // packed
  int64_t count, tokens, width, heads;
  std::array<Const, 3> weight, bias;
  std::array<Const, 2> head_norm;
  float eps;
  const float *cos, *sin;             // [positions, head_dim / 2]
  const int64_t *positions, *slots;  // [count]
  Cache keys, values;
  Mut q_out;                          // [count * heads, head_dim]
  int64_t threads;

  int64_t head_dim() const { return keys.head_dim; }
  int64_t kv_heads() const { return keys.heads; }
  // A head is cut in two tasks where there are too few heads for the threads, unless its q/k-norm needs all of it; pairs
  // (i, i + head_dim / 2) stay together, so half a head is two splits of memory and slower to read than a whole one.
  int64_t parts() const {
    return head_norm[0].data || head_norm[1].data || head_dim() % 16 || heads + 2 * kv_heads() >= 4 * threads ? 1 : 2;
  }
  int64_t tasks() const { return (heads + 2 * kv_heads()) * parts(); }
  int64_t bytes() const { return (heads + 2 * kv_heads()) * head_dim() * width * size_of(weight[0].type); }

  // Elements [begin, begin + n) and [half + begin, half + begin + n) of one head of row m, in `low` and `high`.
  void finish(int64_t m, Kind kind, int64_t head, int64_t begin, int64_t n, float* low, float* high) const {
    const int64_t half = head_dim() / 2;
    const Const& b = bias[kind];
    if (b.data) {
      k.add(low, nullptr, DType::f32, b.at(head * head_dim() + begin), b.type, n, low, DType::f32);
      k.add(high, nullptr, DType::f32, b.at(head * head_dim() + half + begin), b.type, n, high, DType::f32);
    }
    if (kind != value && head_norm[kind].data) {  // parts() is 1: low and high lie side by side, a whole head
      const Const& norm = head_norm[kind];
      k.scale_norm(low, DType::f32, norm.data, norm.type, k.inverse_rms(low, DType::f32, head_dim(), eps), head_dim(), low);
    }
    if (kind != value) k.rotate(low, high, cos + positions[m] * half + begin, sin + positions[m] * half + begin, n);
    const DType type = kind == query ? q_out.type : keys.type;
    char* home = static_cast<char*>(kind == query ? q_out.row(m * heads + head)
                                                  : (kind == key ? keys : values).at(m / tokens, head, slots[m]));
    k.from_float(low, n, home + begin * size_of(type), type);
    k.from_float(high, n, home + (half + begin) * size_of(type), type);
  }

  // The pairs of one head that are a task's: elements [begin, begin + n) of both halves of it.
  struct Piece {
    Kind kind;
    int64_t head, begin, n;
  };
  Piece piece(int64_t task) const {
    const int64_t index = task / parts(), n = head_dim() / 2 / parts();
    const Kind kind = index < heads ? query : index < heads + kv_heads() ? key : value;
    return {kind, kind == query ? index : kind == key ? index - heads : index - heads - kv_heads(), task % parts() * n, n};
  }
  Const rows_of(const Piece& p, int64_t half) const {
    const Const& w = weight[p.kind];
    return {w.row(p.head * head_dim() + half * head_dim() / 2 + p.begin), w.type, w.stride};
  }
  Reads reads(int64_t task, int64_t) const {
    const Piece p = piece(task);
    return rows_read(rows_of(p, 0), 0, parts() == 1 ? 2 * p.n : p.n);
  }
  int64_t together() const { return 1; }
  void multiply(int64_t task, int64_t, Span span, const void* next) const {
    const Piece p = piece(task);
    const Const low = rows_of(p, 0), high = rows_of(p, 1);
    const char* packed = x + k.packed_bytes(low.type, width, span.begin);
    auto* results = reinterpret_cast<float*>(scratch<1>(span.count() * 2 * p.n * 4));
    k.linear(low, p.n, width, packed, span.count(), results, 2 * p.n, high.data);
    k.linear(high, p.n, width, packed, span.count(), results + p.n, 2 * p.n, next);
    for (int64_t m = span.begin; m < span.end; ++m, results += 2 * p.n)
      finish(m, p.kind, p.head, p.begin, p.n, results, results + p.n);
  }
  void operator()(int64_t task, int64_t end, const void* next = nullptr) const { multiply(task, end, {0, count}, next); }
};

// Rows of keys and values from `origin` on, of one KV head of one sequence.
struct KeyRows {
  Cache keys, values;
  int64_t b, kv, origin;
};

// `n` queries over `count` rows, of which query i sees [begin(i), end(i)) and that with its values at query(i). Leaves each
// one's maximum, then its sum, then its head_dim values, from `maximum` on.
template <class Begin, class End, class Query>
void attend_rows(const Kernels& k, const KeyRows& rows, int64_t count, int64_t n, Begin begin_of, End end_of, Query query,
                 DType query_type, float scale, float* maximum) {
  const Cache &keys = rows.keys, &values = rows.values;
  float* sum = maximum + n;
  const int64_t packed_bytes = k.packed_bytes(keys.type, keys.head_dim, n);
  char* packed = scratch<1>(packed_bytes + 2 * n * 8 + n * count * 4);
  auto* begin = reinterpret_cast<int64_t*>(packed + packed_bytes);
  auto* end = begin + n;
  auto* score = reinterpret_cast<float*>(end + n);
  int64_t from = count, to = 0;
  for (int64_t i = 0; i < n; ++i) {
    begin[i] = begin_of(i);
    end[i] = end_of(i);
    if (begin[i] < count && end[i] > 0) {
      from = std::min(from, std::max<int64_t>(0, begin[i]));
      to = std::max(to, std::min(count, end[i]));
    }
  }
  if (from >= to) {  // before every query's window, or after every position: no key is read
    std::fill(maximum, maximum + n, -INFINITY);
    std::fill(sum, sum + n, 0.0f);
    return;
  }
  // The values of a short sequence are prefetched while its keys are multiplied; a longer one gains nothing by it.
  for (int64_t row = from; row < to && to - from <= 64; ++row)
    for (int64_t byte = 0; byte < keys.head_dim * size_of(values.type); byte += 64)
      __builtin_prefetch(static_cast<const char*>(values.at(rows.b, rows.kv, rows.origin + row)) + byte, 0, 2);
  for (int64_t i = 0; i < n; ++i) {
    begin[i] -= from;
    end[i] -= from;
    k.pack(keys.type, query(i), query_type, nullptr, DType::f32, scale, keys.head_dim, i, n, packed);
  }
  k.attend({keys.at(rows.b, rows.kv, rows.origin + from), keys.type, keys.row_stride},
           {values.at(rows.b, rows.kv, rows.origin + from), values.type, values.row_stride}, to - from, keys.head_dim,
           packed, n, begin, end, score, maximum, sum, sum + n);
}

// Joins what `attend_rows` left of `n` queries for each of `splits`, `part` floats apart; query i's result goes to out(i).
template <class Out>
void join_splits(const Kernels& k, const float* parts, int64_t part, int64_t splits, int64_t n, int64_t head_dim, Out out,
                 DType out_type) {
  auto* home = reinterpret_cast<float*>(scratch<1>(head_dim * 4));
  for (int64_t i = 0; i < n; ++i) {
    float highest = -INFINITY, total = 0.0f;
    for (int64_t s = 0; s < splits; ++s) highest = std::max(highest, parts[s * part + i]);
    std::fill(home, home + head_dim, 0.0f);
    for (int64_t s = 0; s < splits; ++s) {
      const float* maximum = parts + s * part;
      const float* values = maximum + 2 * n + i * head_dim;
      if (maximum[n + i] == 0.0f) continue;  // this query sees nothing of this split
      const float factor = std::exp(maximum[i] - highest);
      total += factor * maximum[n + i];
      for (int64_t d = 0; d < head_dim; ++d) home[d] += factor * values[d];
    }
    for (int64_t d = 0; d < head_dim; ++d) home[d] /= total;
    k.from_float(home, head_dim, out(i), out_type);
  }
}

// Softmax attention over the caches. The sequence is cut into KV splits of a fixed length, so neither the number of threads
// nor the rest of the batch can change a bit of the result. A task is a split of one KV head of one sequence; `Reduce` joins
// the splits.
struct Attend {
  static constexpr int64_t kSplit = 256;

  const Kernels& k;
  Const q;  // [batch * tokens * heads, head_dim], contiguous
  int64_t batch, tokens, heads;
  Cache keys, values;
  const int64_t* positions;  // [batch, tokens]: the last row that a query sees
  const int64_t* first;      // [batch], the first one; null: 0
  int64_t window;            // how many it sees at most; 0: any number
  float scale;
  int64_t splits;
  float* parts;

  int64_t group() const { return heads / keys.heads; }
  int64_t pairs() const { return batch * keys.heads; }
  static int64_t splits_for(const int64_t* positions, int64_t n) {
    return n ? *std::max_element(positions, positions + n) / kSplit + 1 : 0;
  }
  int64_t tasks() const { return pairs() * splits; }
  int64_t bytes() const { return pairs() * splits * kSplit * keys.head_dim * 4; }

  // Some tokens of one KV head of one sequence, with all query heads of its group.
  struct Queries {
    int64_t pair, token, tokens;
  };
  Queries all(int64_t pair) const { return {pair, 0, tokens}; }
  // Of one split: each query's maximum, then its sum, then its head_dim values.
  int64_t part(const Queries& some) const { return some.tokens * group() * (keys.head_dim + 2); }

  int64_t lowest(int64_t b, int64_t t) const {
    const int64_t own = positions[b * tokens + t];
    const int64_t start = std::max(window ? own - window + 1 : 0, first ? first[b] : 0);
    return std::clamp<int64_t>(start, 0, own);
  }

  // One split for some queries, which read no more of it than they see.
  void attend(const Queries& some, int64_t split, float* maximum) const {
    const int64_t b = some.pair / keys.heads, kv = some.pair % keys.heads, origin = split * kSplit;
    const auto row = [&](int64_t i) { return b * tokens + some.token + i / group(); };
    attend_rows(
        k, {keys, values, b, kv, origin}, kSplit, some.tokens * group(),
        [&](int64_t i) { return lowest(b, some.token + i / group()) - origin; },
        [&](int64_t i) { return positions[row(i)] + 1 - origin; },
        [&](int64_t i) { return q.at((row(i) * heads + kv * group() + i % group()) * keys.head_dim); }, q.type, scale, maximum);
  }
  void operator()(int64_t task) const {
    const Queries some = all(task / splits);
    attend(some, task % splits, parts + task * part(some));
  }
};

// Joins the splits of one KV head of one sequence.
struct Reduce {
  const Attend& a;
  Mut out;  // [batch * tokens * heads, head_dim]

  int64_t tasks() const { return a.pairs(); }
  int64_t bytes() const { return a.tasks() * a.part(a.all(0)) * 4; }
  void join(const Attend::Queries& some, const float* parts) const {
    const int64_t b = some.pair / a.keys.heads, kv = some.pair % a.keys.heads;
    const auto row = [&](int64_t i) {
      return out.row((b * a.tokens + some.token + i / a.group()) * a.heads + kv * a.group() + i % a.group());
    };
    join_splits(a.k, parts, a.part(some), a.splits, some.tokens * a.group(), a.keys.head_dim, row, out.type);
  }
  void operator()(int64_t pair) const { join(a.all(pair), a.parts + pair * a.splits * a.part(a.all(pair))); }
};

// The same for many tokens, which would have many parts: a task is some tokens of one KV head of one sequence, whose
// splits it joins itself. The results have the same bits.
struct AttendPrefill {
  static constexpr int64_t kQueries = 64;  // of a task: their scores stay in a core's L2

  const Attend& a;
  Reduce reduce;

  int64_t tokens() const { return std::max<int64_t>(1, kQueries / a.group()); }
  int64_t tiles() const { return (a.tokens + tokens() - 1) / tokens(); }
  int64_t tasks() const { return a.pairs() * tiles(); }
  void operator()(int64_t task) const {
    const int64_t token = task % tiles() * tokens();
    const Attend::Queries some{task / tiles(), token, std::min(tokens(), a.tokens - token)};
    auto* parts = reinterpret_cast<float*>(scratch<3>(a.splits * a.part(some) * 4));
    for (int64_t s = 0; s < a.splits; ++s) a.attend(some, s, parts + s * a.part(some));
    reduce.join(some, parts);
  }
};

// Sequences that lie side by side, each behind a prefix that stands somewhere among their tokens: what `AttendPrefill` is for
// a cache. A task is some tokens of one KV head of one sequence. The splits begin anew where its own tokens begin, so no bit
// depends on what else is in the pack.
struct AttendPack {
  struct Sequence {
    int64_t begin, own, prefix, seen;  // its own tokens and where they begin; its prefix's
    int64_t task;                      // the first of its tasks
  };

  const Kernels& k;
  Const q;  // [tokens * heads, head_dim], contiguous
  int64_t heads;
  Cache keys, values;  // a batch of 1
  int64_t window;
  float scale;
  Mut out;
  std::vector<Sequence> sequences;
  int64_t count = 0;  // of tasks

  int64_t group() const { return heads / keys.heads; }
  int64_t tokens() const { return std::max<int64_t>(1, AttendPrefill::kQueries / group()); }
  int64_t tiles(const Sequence& s) const { return (s.own + tokens() - 1) / tokens(); }
  void add(int64_t begin, int64_t own, int64_t prefix, int64_t seen) {
    sequences.push_back({begin, own, prefix, seen, count});
    count += tiles(sequences.back()) * keys.heads;
  }
  int64_t tasks() const { return count; }
  int64_t bytes() const { return count * tokens() * group() * keys.head_dim * 4; }

  void operator()(int64_t task) const {
    const auto after = std::upper_bound(sequences.begin(), sequences.end(), task,
                                        [](int64_t t, const Sequence& s) { return t < s.task; });
    const Sequence& s = *std::prev(after);
    const int64_t kv = (task - s.task) / tiles(s), first = (task - s.task) % tiles(s) * tokens();
    const int64_t n = std::min(tokens(), s.own - first) * group(), last = first + n / group();  // of its own tokens
    const int64_t part = n * (keys.head_dim + 2);
    const auto splits_of = [](int64_t rows) { return (rows + Attend::kSplit - 1) / Attend::kSplit; };
    const int64_t before = splits_of(s.seen), splits = before + splits_of(last);
    auto* parts = reinterpret_cast<float*>(scratch<3>(splits * part * 4));
    const auto row = [&](int64_t i) { return (s.begin + first + i / group()) * heads + kv * group() + i % group(); };
    for (int64_t split = 0; split < splits; ++split) {
      const bool shared = split < before;
      const int64_t place = (shared ? split : split - before) * Attend::kSplit;  // in the prefix, or behind it
      const int64_t position = shared ? place : s.seen + place;
      const int64_t rows = std::min(Attend::kSplit, (shared ? s.seen : last) - place);
      const auto end = [&](int64_t i) { return s.seen + first + i / group() + 1 - position; };
      const auto begin = [&](int64_t i) { return window ? std::max<int64_t>(0, end(i) - window) : 0; };
      attend_rows(k, {keys, values, 0, kv, (shared ? s.prefix : s.begin) + place}, rows, n, begin, end,
                  [&](int64_t i) { return q.row(row(i)); }, q.type, scale, parts + split * part);
    }
    join_splits(k, parts, part, splits, n, keys.head_dim, [&](int64_t i) { return out.row(row(i)); }, out.type);
  }
};

}  // namespace pyprune::cpu
