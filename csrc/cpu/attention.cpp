// The attention sublayer up to its output projection: the operators norm_qkv_rope, decode_attention and
// shared_prefix_attention.
#include "checks.h"
#include "gemm.h"
#include "row_groups.h"
#include "thread_team.h"

namespace pyprune::cpu {

Tensor norm_qkv_rope(Tensor x, Tensor norm, double eps, Tensor q_weight, Tensor k_weight, Tensor v_weight, Optional q_bias,
                     Optional k_bias, Optional v_bias, Optional q_norm, Optional k_norm, Tensor cos, Tensor sin,
                     Tensor positions, Tensor k_cache, Tensor v_cache, Optional skip, int64_t sublayer,
                     Optional slots) {
  const Kernels& k = kernels();
  STD_TORCH_CHECK(x.dim() == 3, "x: [batch, tokens, hidden] is expected");
  const Rows rows(x, "x");
  const int64_t batch = x.size(0), tokens = x.size(1);
  const Cache keys = cache_of(k_cache, "k_cache"), values = cache_of(v_cache, "v_cache");
  check_pair(keys, values);
  const int64_t head_dim = keys.head_dim, half = head_dim / 2, kv_heads = keys.heads;
  STD_TORCH_CHECK(keys.batch >= batch, "k_cache: room for a batch of ", batch, " is expected");
  const Const scale = vector(norm, rows.width, "norm");
  const Const wq = matrix(q_weight, rows.width, "q_weight"), wk = matrix(k_weight, rows.width, "k_weight"),
              wv = matrix(v_weight, rows.width, "v_weight");
  const int64_t heads = check_heads({wq, wk, wv}, q_weight.size(0), k_weight.size(0), v_weight.size(0), keys);
  const Const bq = vector(q_bias, heads * head_dim, "q_bias"), bk = vector(k_bias, kv_heads * head_dim, "k_bias"),
              bv = vector(v_bias, kv_heads * head_dim, "v_bias");
  const Const nq = vector(q_norm, head_dim, "q_norm"), nk = vector(k_norm, head_dim, "k_norm");
  check_tables(cos, sin, half);
  const int64_t most = slots.has_value() ? cos.size(0) : std::min(keys.length, cos.size(0));
  const auto* position = check_places("positions", positions, {batch, tokens}, most);
  const auto* slot = slots.has_value() ? check_places("slots", *slots, {batch, tokens}, keys.length) : position;
  Tensor q = new_tensor(x, {batch, tokens, heads, head_dim}, x.scalar_type());
  if (skipped(skip, sublayer)) return torch::stable::zero_(q);
  Qkv stage{k, {}, rows.count, tokens, rows.width, heads, {wq, wk, wv}, {bq, bk, bv}, {nq, nk}, float(eps),
            static_cast<const float*>(cos.const_data_ptr()), static_cast<const float*>(sin.const_data_ptr()), position,
            slot, keys, values, rows_of(q, head_dim), torch::stable::get_num_threads()};
  if (run_packed(stage, rows, scale, float(eps), wq.type)) return q;
  const Tensor h = float_rows(k, rows, scale, float(eps));
  const Tensor qs = matmul(k, h, q_weight, wq), ks = matmul(k, h, k_weight, wk), vs = matmul(k, h, v_weight, wv);
  auto* q_values = static_cast<float*>(qs.mutable_data_ptr());
  auto* k_values = static_cast<float*>(ks.mutable_data_ptr());
  auto* v_values = static_cast<float*>(vs.mutable_data_ptr());
  parallel(rows.count, rows.count * (heads + 2 * kv_heads) * head_dim * 4, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      const auto finish = [&](Qkv::Kind kind, int64_t head, float* v) { stage.finish(m, kind, head, 0, half, v, v + half); };
      for (int64_t i = 0; i < heads; ++i) finish(Qkv::query, i, q_values + (m * heads + i) * head_dim);
      for (int64_t i = 0; i < kv_heads; ++i) finish(Qkv::key, i, k_values + (m * kv_heads + i) * head_dim);
      for (int64_t i = 0; i < kv_heads; ++i) finish(Qkv::value, i, v_values + (m * kv_heads + i) * head_dim);
    }
  });
  return q;
}

Tensor decode_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor positions, double scale, Optional skip,
                        int64_t sublayer, Optional first, int64_t window) {
  STD_TORCH_CHECK(q.dim() == 4, "q: [batch, tokens, heads, head_dim] is expected");
  const Rows rows(q, "q");
  const int64_t batch = q.size(0), tokens = q.size(1), heads = q.size(2), head_dim = q.size(3);
  const Cache keys = cache_of(k_cache, "k_cache"), values = cache_of(v_cache, "v_cache");
  check_pair(keys, values);
  STD_TORCH_CHECK(keys.batch >= batch && keys.head_dim == head_dim && keys.heads > 0 && heads % keys.heads == 0,
                  "k_cache: q's head_dim, room for its batch and a divisor of its heads are expected");
  STD_TORCH_CHECK(window >= 0, "window: ", window, " given; 0 (none) or a positive number is expected");
  const auto* position = check_places("positions", positions, {batch, tokens}, keys.length);
  const auto* start = first.has_value() ? check_places("first", *first, {batch}, keys.length) : nullptr;
  Tensor result = new_tensor(q, {batch, tokens, heads, head_dim}, q.scalar_type());
  if (skipped(skip, sublayer)) return torch::stable::zero_(result);

  Attend stage{kernels(), rows.view, batch, tokens, heads, keys, values, position, start, window, float(scale),
               Attend::splits_for(position, batch * tokens), nullptr};
  const Reduce reduce{stage, rows_of(result, head_dim)};
  if (tokens > kSplitTokens) {
    ThreadTeam team(1);
    AttendPrefill prefill{stage, reduce};
    team.run([&](ThreadTeam::Member& member) { member.run(prefill); });
    return result;
  }
  // Partial results stay in scratch while small; a long row of queries gets memory that is given back.
  const int64_t floats = stage.tasks() * stage.part(stage.all(0));
  std::optional<Tensor> large;
  if (floats > kKeptFloats) large = new_tensor(q, {floats}, ScalarType::Float);
  stage.parts = large ? static_cast<float*>(large->mutable_data_ptr()) : reinterpret_cast<float*>(scratch<0>(floats * 4));
  run(stage);
  run(reduce);
  return result;
}

Tensor shared_prefix_attention(Tensor q, Tensor keys, Tensor values, Tensor sequences, double scale, int64_t window) {
  STD_TORCH_CHECK(q.dim() == 3, "q: [tokens, heads, head_dim] is expected");
  const Rows rows(q, "q");
  const int64_t count = q.size(0), heads = q.size(1), head_dim = q.size(2);
  const Cache k = token_cache_of(keys, "keys"), v = token_cache_of(values, "values");
  check_pair(k, v);
  STD_TORCH_CHECK(k.length == count && k.head_dim == head_dim && k.heads > 0 && heads % k.heads == 0,
                  "keys: q's tokens and head_dim and a divisor of its heads are expected");
  STD_TORCH_CHECK(window >= 0, "window: ", window, " given; 0 (none) or a positive number is expected");
  STD_TORCH_CHECK(sequences.is_cpu() && sequences.scalar_type() == ScalarType::Long && sequences.is_contiguous() &&
                      sequences.dim() == 2 && sequences.size(1) == 3,
                  "sequences: a contiguous CPU int64 tensor [sequences, 3] is expected");
  Tensor result = new_tensor(q, {count, heads, head_dim}, q.scalar_type());
  AttendPack stage{kernels(), rows.view, heads, k, v, window, float(scale), rows_of(result, head_dim), {}};
  const auto* entry = static_cast<const int64_t*>(sequences.const_data_ptr());
  int64_t begin = 0;
  for (int64_t s = 0; s < sequences.size(0); ++s, entry += 3) {
    const int64_t own = entry[0], prefix = entry[1], seen = entry[2];
    STD_TORCH_CHECK(own >= 0 && prefix >= 0 && seen >= 0 && own <= count - begin && prefix <= count && seen <= count - prefix,
                    "sequences: [", own, ", ", prefix, ", ", seen, "] is outside ", count, " tokens");
    if (own > 0) stage.add(begin, own, prefix, seen);
    begin += own;
  }
  STD_TORCH_CHECK(begin == count, "sequences: ", begin, " tokens in all; the ", count, " of q are expected");
  ThreadTeam team(1);
  team.run([&](ThreadTeam::Member& member) { member.run(stage); });
  return result;
}

}  // namespace pyprune::cpu

STABLE_TORCH_LIBRARY_IMPL(pyprune, CPU, m) {
  m.impl("norm_qkv_rope", TORCH_BOX(&pyprune::cpu::norm_qkv_rope));
  m.impl("shared_prefix_attention", TORCH_BOX(&pyprune::cpu::shared_prefix_attention));
  m.impl("decode_attention", TORCH_BOX(&pyprune::cpu::decode_attention));
}
