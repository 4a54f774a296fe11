// What one instruction set offers: plain functions over plain memory, single-threaded, no torch.
// kernels.cpp is compiled once per instruction set; dispatch.cpp picks one table at run time; stages.h says what
// one thread does with it, and the operators split the work.
#pragma once

#include <cstdint>

namespace pyprune::cpu {

// How weights are stored. compressed_bf16: compressed_bf16.h; its stride counts bytes, and only whole rows have an address.
enum class DType : int { f32 = 0, bf16 = 1, f16 = 2, compressed_bf16 = 3 };

inline constexpr int64_t size_of(DType type) { return type == DType::f32 ? 4 : type == DType::compressed_bf16 ? 1 : 2; }
// What the values are, however they are stored.
inline constexpr DType value_type(DType type) { return type == DType::compressed_bf16 ? DType::bf16 : type; }

// A row-major matrix or vector in memory that belongs to someone else. `stride` counts elements between rows.
struct Const {
  const void* data = nullptr;
  DType type = DType::f32;
  int64_t stride = 0;

  const void* at(int64_t element) const { return static_cast<const char*>(data) + element * size_of(type); }
  const void* row(int64_t index) const { return at(index * stride); }
};

struct Mut {
  void* data = nullptr;
  DType type = DType::f32;
  int64_t stride = 0;

  void* at(int64_t element) const { return static_cast<char*>(data) + element * size_of(type); }
  void* row(int64_t index) const { return at(index * stride); }
};

// Dropout's masks of some rows, a bit for each value, set where it stays; no bits: all stay.
struct Kept {
  const uint8_t* bits = nullptr;
  int64_t stride = 0;  // bytes of a row

  const uint8_t* row(int64_t index) const { return bits + index * stride; }
  Kept from(int64_t index) const { return {bits ? row(index) : nullptr, stride}; }
};

// Ranks of a low-rank product that are summed at a time.
inline constexpr int64_t kRankTile = 8;

// Tokens of some heads: where a head's values for a token lie; strides count elements.
struct Heads {
  void* data = nullptr;
  DType type = DType::f32;
  int64_t head = 0, token = 0;

  void* at(int64_t index, int64_t t) const { return static_cast<char*>(data) + (index * head + t * token) * size_of(type); }
};

// Causal attention of one KV head of a sequence: `heads` query heads read its keys and values.
struct CausalHeads {
  static constexpr int64_t kBlock = 64;  // queries whose scores exist at a time
  static constexpr int64_t filled(int64_t n) { return (n + 15) / 16 * 16; }  // whole vectors

  int64_t tokens, head_dim, heads;
  float scale;
  Heads q, k, v, out;
  float* log_sum;  // [heads, tokens] of exp(scores): what the way back needs of them
  Heads slope, dq, dk, dv;

  // Of the memory that the kernels are given, in floats.
  int64_t forward_floats() const {
    return head_dim * filled(tokens) + tokens * filled(head_dim) + kBlock * (2 * filled(head_dim) + filled(tokens));
  }
  int64_t backward_floats() const {
    return 2 * head_dim * filled(tokens) + 3 * tokens * filled(head_dim) + kBlock * (3 * filled(head_dim) + 2 * filled(tokens));
  }
};

struct Kernels {
  const char* name;

  // Activations are packed once per operator into the layout in which weights of `weight_type` are multiplied:
  // `packed_bytes` is the size of `count` rows of `n` values (a multiple of 64), `pack` puts row m of them in its place,
  // from x times `scale`, times norm[i] where norm is given. Rows [i, i + `packed_together`) lie interleaved where i is a
  // multiple of it: one thread packs them, for two would write to the same lines of memory.
  int64_t (*packed_bytes)(DType weight_type, int64_t n, int64_t count);
  int64_t (*packed_together)(DType weight_type);
  void (*pack)(DType weight_type, const void* x, DType x_type, const void* norm, DType norm_type, float scale,
               int64_t n, int64_t m, int64_t count, void* packed);

  // out[m][r] = sum_k weight[r][k] * x[m][k] for `rows` weight rows and all `m_count` packed rows, float32 accumulation.
  // The order of additions for one (m, r) depends on k alone: a result has the same bits whatever else is in the batch.
  // `next` is the memory that this thread reads after these rows, null for what lies behind them: its first lines are
  // prefetched while the last rows are multiplied.
  void (*linear)(const Const& weight, int64_t rows, int64_t k, const void* packed, int64_t m_count, float* out,
                 int64_t out_stride, const void* next);

  // 1 / sqrt(mean(x^2) + eps)
  float (*inverse_rms)(const void* x, DType type, int64_t n, float eps);
  // out = x * scale * norm, float32
  void (*scale_norm)(const void* x, DType type, const void* norm, DType norm_type, float scale, int64_t n, float* out);

  // A row of n values as float32; a compressed one as bfloat16 too.
  void (*to_float)(const void* x, DType type, int64_t n, float* out);
  void (*to_bf16)(const void* compressed_row, int64_t n, void* out);
  void (*from_float)(const float* x, int64_t n, void* out, DType type);
  // out = x + y (+ bias), in `type`
  void (*add)(const float* x, const void* y, DType y_type, const void* bias, DType bias_type, int64_t n, void* out,
              DType type);
  // out = silu(gate) * up, in `type`; biases may be null
  void (*silu_mul)(const float* gate, const float* up, const void* gate_bias, const void* up_bias, DType bias_type,
                   int64_t n, void* out, DType type);
  // rotate (a, b) by the angle: a' = a cos - b sin, b' = b cos + a sin
  void (*rotate)(float* a, float* b, const float* cos, const float* sin, int64_t n);

  // Softmax-weighted sum over `length` cache rows of one KV head for `m_count` queries; see attention in kernels.cpp.
  // Query m sees the rows [begin[m], end[m]) of these. Gives max, sum and the unnormalised output.
  void (*attend)(const Const& keys, const Const& values, int64_t length, int64_t head_dim, const void* packed,
                 int64_t m_count, const int64_t* begin, const int64_t* end, float* score, float* maximum, float* sum,
                 float* out);

  // Streams `n` logits into a running (maximum, sum of exp(logit - maximum)).
  void (*log_sum_exp)(const float* logits, int64_t n, float* maximum, float* sum);

  // The mask of a row of n values, filled up to whole 64: where a value's 16 random bits are at least `limit` (dropout.h).
  void (*kept_bits)(uint64_t seed, int64_t row, int64_t n, uint32_t limit, uint8_t* bits);
  // Low-rank products of `rows` rows of n values; `a` [rank, n] and `low` [rows, rank] filled up as low_rank.cpp does.
  // out[m][r] = sum_k kept x[m][k] * a[r][k]
  void (*project)(const Const& x, const Kept& kept, int64_t rows, int64_t n, const float* a, int64_t a_stride, int64_t rank,
                  float* out);
  // y[m][k] += kept sum_r low[m][r] * a[r][k]
  void (*add_low_rank)(const Mut& y, const Kept& kept, int64_t rows, int64_t n, const float* low, const float* a,
                       int64_t a_stride, int64_t rank);
  // out[r][k] = sum_m low[m][r] * kept x[m][k]
  void (*low_rank_gradient)(const Const& x, const Kept& kept, int64_t rows, int64_t n, const float* low, int64_t rank,
                            float* out, int64_t out_stride);

  // -log softmax(scale * logits)[target], and logits become its gradient.
  float (*cross_entropy_gradient)(void* logits, DType type, int64_t n, int64_t target, float scale);

  // out = softmax(scale q k^T, causal) v, and log_sum; on the way back dq, dk and dv of slope, the gradient of out.
  void (*causal_attention)(const CausalHeads& heads, float* memory);
  void (*causal_attention_backward)(const CausalHeads& heads, float* memory);
};

// Every table that was compiled in, best first; null-terminated.
const Kernels* const* compiled_kernels();
// The table in use. Chosen on first use: the best that this processor runs and that has been checked on hardware.
const Kernels& kernels();

}  // namespace pyprune::cpu
