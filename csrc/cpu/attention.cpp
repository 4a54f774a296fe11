// The attention half up to its output projection. Contracts: pyprune/ops/schemas.py.
#include "attention.h"

#include <algorithm>
#include <cmath>

namespace pyprune::cpu {

namespace {

// A KV cache [batch, kv_heads, length, head_dim], the last dimension contiguous.
struct Cache {
  char* data;
  DType type;
  int64_t batch, heads, length, head_dim, batch_stride, head_stride, row_stride;

  Cache(const Tensor& t, const char* what) {
    STD_TORCH_CHECK(t.is_cpu() && t.dim() == 4 && (t.size(3) <= 1 || t.stride(3) == 1), what,
                    ": a CPU tensor [batch, kv_heads, length, head_dim] with contiguous rows is expected");
    data = static_cast<char*>(t.mutable_data_ptr());
    type = dtype_of(t, what);
    batch = t.size(0), heads = t.size(1), length = t.size(2), head_dim = t.size(3);
    batch_stride = t.stride(0), head_stride = t.stride(1), row_stride = t.stride(2);
  }
  void* at(int64_t b, int64_t h, int64_t position) const {
    return data + (b * batch_stride + h * head_stride + position * row_stride) * size_of(type);
  }
};

void check_pair(const Cache& keys, const Cache& values) {
  STD_TORCH_CHECK(keys.batch == values.batch && keys.heads == values.heads && keys.length == values.length &&
                      keys.head_dim == values.head_dim && keys.type == values.type,
                  "v_cache: the shape and dtype of k_cache are expected");
}

// positions [batch, tokens] int64, each in [0, limit).
const int64_t* check_positions(const Tensor& positions, int64_t batch, int64_t tokens, int64_t limit) {
  STD_TORCH_CHECK(positions.is_cpu() && positions.scalar_type() == ScalarType::Long && positions.dim() == 2 &&
                      positions.size(0) == batch && positions.size(1) == tokens && positions.is_contiguous(),
                  "positions: a contiguous CPU int64 tensor [batch, tokens] is expected");
  const auto* p = static_cast<const int64_t*>(positions.const_data_ptr());
  for (int64_t i = 0; i < batch * tokens; ++i)
    STD_TORCH_CHECK(0 <= p[i] && p[i] < limit, "positions: ", p[i], " is outside [0, ", limit, ")");
  return p;
}

}  // namespace

Tensor norm_qkv_rope(Tensor x, Tensor norm, double eps, Tensor q_weight, Tensor k_weight, Tensor v_weight, Optional q_bias,
                     Optional k_bias, Optional v_bias, Optional q_norm, Optional k_norm, Tensor cos, Tensor sin,
                     Tensor positions, Tensor k_cache, Tensor v_cache, Optional skip, int64_t unit) {
  const Kernels& k = kernels();
  STD_TORCH_CHECK(x.dim() == 3, "x: [batch, tokens, hidden] is expected");
  const Rows rows(x, "x");
  const int64_t batch = x.size(0), tokens = x.size(1);
  const Cache keys(k_cache, "k_cache"), values(v_cache, "v_cache");
  check_pair(keys, values);
  const int64_t head_dim = keys.head_dim, half = head_dim / 2, kv_heads = keys.heads;
  STD_TORCH_CHECK(head_dim % 2 == 0 && head_dim > 0, "k_cache: an even head_dim is expected");
  STD_TORCH_CHECK(keys.batch >= batch, "k_cache: room for a batch of ", batch, " is expected");
  const Const scale = vector(norm, rows.width, "norm");
  const Const wq = matrix(q_weight, rows.width, "q_weight"), wk = matrix(k_weight, rows.width, "k_weight"),
              wv = matrix(v_weight, rows.width, "v_weight");
  STD_TORCH_CHECK(wk.type == wq.type && wv.type == wq.type, "k_weight, v_weight: the dtype of q_weight is expected");
  const int64_t heads = q_weight.size(0) / head_dim;
  STD_TORCH_CHECK(q_weight.size(0) == heads * head_dim && k_weight.size(0) == kv_heads * head_dim &&
                      v_weight.size(0) == kv_heads * head_dim && kv_heads > 0 && heads % kv_heads == 0,
                  "q_weight, k_weight, v_weight: whole heads of the caches' head_dim are expected");
  const Const bq = vector(q_bias, heads * head_dim, "q_bias"), bk = vector(k_bias, kv_heads * head_dim, "k_bias"),
              bv = vector(v_bias, kv_heads * head_dim, "v_bias");
  const Const nq = vector(q_norm, head_dim, "q_norm"), nk = vector(k_norm, head_dim, "k_norm");
  STD_TORCH_CHECK(cos.is_cpu() && cos.dim() == 2 && cos.size(1) == half && cos.scalar_type() == ScalarType::Float &&
                      cos.is_contiguous() && sin.is_cpu() && sin.dim() == 2 && sin.size(0) == cos.size(0) &&
                      sin.size(1) == half && sin.scalar_type() == ScalarType::Float && sin.is_contiguous(),
                  "cos, sin: contiguous CPU float32 tensors [positions, head_dim / 2] are expected");
  const auto* position = check_positions(positions, batch, tokens, std::min(keys.length, cos.size(0)));
  Tensor q = new_tensor(x, {batch, tokens, heads, head_dim}, x.scalar_type());
  if (skipped(skip, unit)) return torch::stable::zero_(q);
  const Mut q_out = rows_of(q, head_dim);
  const auto* cosines = static_cast<const float*>(cos.const_data_ptr());
  const auto* sines = static_cast<const float*>(sin.const_data_ptr());

  // One head of one row: bias, the family's q/k norm, rotation, and home: q to the result, k and v into the cache.
  enum Kind { query, key, value };
  const auto finish = [&](int64_t m, Kind kind, int64_t head, float* v) {
    const Const& bias = kind == query ? bq : kind == key ? bk : bv;
    if (bias.data)
      k.add(v, nullptr, DType::f32, bias.at(head * head_dim), bias.type, head_dim, v, DType::f32);
    const Const& head_norm = kind == query ? nq : nk;
    if (kind != value && head_norm.data)
      k.scale_norm(v, DType::f32, head_norm.data, head_norm.type, k.inverse_rms(v, DType::f32, head_dim, float(eps)),
                   head_dim, v);
    const int64_t b = m / tokens;
    if (kind != value) k.rotate(v, v + half, cosines + position[m] * half, sines + position[m] * half, half);
    void* home = kind == query ? q_out.row(m * heads + head)
                               : (kind == key ? keys : values).at(b, head, position[m]);
    k.from_float(v, head_dim, home, kind == query ? q_out.type : keys.type);
  };

  if (rows.count <= kFewRows) {
    const Packed packed = pack_rows(k, rows, scale, float(eps), wq.type);
    const int64_t units = heads + 2 * kv_heads;
    parallel(units, units * head_dim * rows.width * size_of(wq.type), [&](int64_t begin, int64_t end) {
      auto* results = reinterpret_cast<float*>(scratch<1>(rows.count * head_dim * 4));
      for (int64_t u = begin; u < end; ++u) {
        const Kind kind = u < heads ? query : u < heads + kv_heads ? key : value;
        const int64_t head = kind == query ? u : kind == key ? u - heads : u - heads - kv_heads;
        const Const& w = kind == query ? wq : kind == key ? wk : wv;
        k.linear({w.row(head * head_dim), w.type, w.stride}, head_dim, rows.width, packed.data, packed.stride, rows.count,
                 results, head_dim);
        for (int64_t m = 0; m < rows.count; ++m) finish(m, kind, head, results + m * head_dim);
      }
    });
    return q;
  }
  const Tensor h = float_rows(k, rows, scale, float(eps));
  const Tensor qs = matmul(k, h, q_weight, wq), ks = matmul(k, h, k_weight, wk), vs = matmul(k, h, v_weight, wv);
  auto* q_values = static_cast<float*>(qs.mutable_data_ptr());
  auto* k_values = static_cast<float*>(ks.mutable_data_ptr());
  auto* v_values = static_cast<float*>(vs.mutable_data_ptr());
  parallel(rows.count, rows.count * (heads + 2 * kv_heads) * head_dim * 4, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      for (int64_t i = 0; i < heads; ++i) finish(m, query, i, q_values + (m * heads + i) * head_dim);
      for (int64_t i = 0; i < kv_heads; ++i) finish(m, key, i, k_values + (m * kv_heads + i) * head_dim);
      for (int64_t i = 0; i < kv_heads; ++i) finish(m, value, i, v_values + (m * kv_heads + i) * head_dim);
    }
  });
  return q;
}

// The sequence is cut into stretches of a fixed length, so neither the number of threads nor the rest of the batch can
// change a bit of the result.
Tensor decode_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor positions, double scale, Optional skip,
                        int64_t unit) {
  constexpr int64_t kStretch = 256;
  const Kernels& k = kernels();
  STD_TORCH_CHECK(q.dim() == 4, "q: [batch, tokens, heads, head_dim] is expected");
  const Rows rows(q, "q");
  const int64_t batch = q.size(0), tokens = q.size(1), heads = q.size(2), head_dim = q.size(3);
  const Cache keys(k_cache, "k_cache"), values(v_cache, "v_cache");
  check_pair(keys, values);
  STD_TORCH_CHECK(keys.batch >= batch && keys.head_dim == head_dim && keys.heads > 0 && heads % keys.heads == 0,
                  "k_cache: q's head_dim, room for its batch and a divisor of its heads are expected");
  const auto* position = check_positions(positions, batch, tokens, keys.length);
  Tensor result = new_tensor(q, {batch, tokens, heads, head_dim}, q.scalar_type());
  if (skipped(skip, unit)) return torch::stable::zero_(result);
  const Mut out = rows_of(result, head_dim);

  const int64_t group = heads / keys.heads, queries = tokens * group, pairs = batch * keys.heads;
  int64_t last = 0;
  for (int64_t i = 0; i < batch * tokens; ++i) last = std::max(last, position[i]);
  const int64_t stretches = last / kStretch + 1;
  // Partial results: for each (pair, stretch, query) its maximum, sum, and head_dim values.
  const int64_t part = queries * (head_dim + 2);
  // They stay in scratch while small; a long stretch of queries gets memory that is given back.
  const int64_t floats = pairs * stretches * part;
  std::optional<Tensor> large;
  if (floats > (int64_t(4) << 20)) large = new_tensor(q, {floats}, ScalarType::Float);
  auto* parts = large ? static_cast<float*>(large->mutable_data_ptr()) : reinterpret_cast<float*>(scratch<0>(floats * 4));
  const int64_t packed_stride = k.packed_bytes(keys.type, head_dim);

  parallel(pairs * stretches, pairs * (last + 1) * head_dim * 4, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t pair = item / stretches, first = item % stretches * kStretch;
      const int64_t b = pair / keys.heads, kv = pair % keys.heads;
      float* maximum = parts + item * part;
      float* sum = maximum + queries;
      float* acc = sum + queries;
      int64_t length = 0;
      char* packed = scratch<1>(queries * packed_stride + queries * 8 + queries * kStretch * 4);
      auto* limit = reinterpret_cast<int64_t*>(packed + queries * packed_stride);
      auto* score = reinterpret_cast<float*>(limit + queries);
      for (int64_t i = 0; i < queries; ++i) {
        const int64_t t = i / group, head = kv * group + i % group;
        limit[i] = position[b * tokens + t] + 1 - first;
        length = std::max(length, std::min(kStretch, limit[i]));
        k.pack(keys.type, rows.view.at(((b * tokens + t) * heads + head) * head_dim), rows.view.type, nullptr, DType::f32,
               float(scale), head_dim, packed + i * packed_stride);
      }
      k.attend({keys.at(b, kv, first), keys.type, keys.row_stride}, {values.at(b, kv, first), values.type, values.row_stride},
               length, head_dim, packed, packed_stride, queries, limit, score, maximum, sum, acc);
    }
  });
  parallel(pairs, pairs * stretches * part * 4, [&](int64_t begin, int64_t end) {
    for (int64_t pair = begin; pair < end; ++pair) {
      const int64_t b = pair / keys.heads, kv = pair % keys.heads;
      for (int64_t i = 0; i < queries; ++i) {
        float highest = -INFINITY, total = 0.0f;
        for (int64_t s = 0; s < stretches; ++s) highest = std::max(highest, parts[(pair * stretches + s) * part + i]);
        auto* home = reinterpret_cast<float*>(scratch<1>(head_dim * 4));
        std::fill(home, home + head_dim, 0.0f);
        for (int64_t s = 0; s < stretches; ++s) {
          const float* maximum = parts + (pair * stretches + s) * part;
          const float* acc = maximum + 2 * queries + i * head_dim;
          if (maximum[queries + i] == 0.0f) continue;  // this query sees nothing of this stretch
          const float factor = std::exp(maximum[i] - highest);
          total += factor * maximum[queries + i];
          for (int64_t d = 0; d < head_dim; ++d) home[d] += factor * acc[d];
        }
        for (int64_t d = 0; d < head_dim; ++d) home[d] /= total;
        const int64_t t = i / group, head = kv * group + i % group;
        k.from_float(home, head_dim, out.row((b * tokens + t) * heads + head), out.type);
      }
    }
  });
  return result;
}

}  // namespace pyprune::cpu
