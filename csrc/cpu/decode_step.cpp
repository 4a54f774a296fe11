// One decode step of a whole decoder: one dispatch, one fork and join. The operator decode_step.
#include "checks.h"
#include "thread_team.h"

namespace pyprune::cpu {

namespace {

// A block's entry in `layout`: places in `weights`, -1 where there is none, and the attention's window. The names are
// LAYOUT's in pyprune/ops/schemas.py, from which CMake takes them.
enum Field { PYPRUNE_LAYOUT, fields };

// Activation rows times width up to which every thread packs all of them for itself: quicker than meeting once more.
constexpr int64_t kPackAlone = 8192;

struct Step {
  const Kernels& k;
  int64_t batch, hidden;
  float eps;
  const std::vector<Tensor>& weights;
  const std::vector<int64_t>& layout;
  const bool* skip;
  const int64_t* positions;
  const float *cos, *sin;
  int64_t threads;
  // Shared between the threads: the residual stream, what attention and FFN hand on, packed rows, partial attention.
  float *x, *queries, *context, *activation, *parts;
  char* packed;

  int64_t blocks() const { return int64_t(layout.size()) / fields; }
  bool has(int64_t block, Field field) const { return layout[block * fields + field] >= 0; }
  const Tensor& weight(int64_t block, Field field) const { return weights[layout[block * fields + field]]; }
  bool runs(int64_t block, bool ffn) const {
    return has(block, ffn ? ffn_norm : mha_norm) && !(skip && skip[2 * block + ffn]);
  }
  Const matrix_of(int64_t block, Field field) const {
    const Tensor& t = weight(block, field);
    return {t.const_data_ptr(), stored_as(t, "weights"), t.stride(0)};
  }
  Const vector_of(int64_t block, Field field) const {
    if (!has(block, field)) return {};
    const Tensor& t = weight(block, field);
    return {t.const_data_ptr(), dtype_of(t, "weights"), 0};
  }
  int64_t rows_of(int64_t block, Field field) const { return weight(block, field).size(0); }

  // A stage that multiplies `rows` [batch, width], normalised where norm is given, by weights of `type`.
  template <class Stage>
  void multiply(ThreadTeam::Member& member, const float* rows, int64_t width, const Const& norm, DType type, Stage& stage) const {
    Pack pack{k, {{rows, DType::f32, width}, batch, width}, norm, eps, type, packed};
    stage.x = packed;
    if (batch * width > kPackAlone) {
      member.run(pack);
      return member.run(stage);
    }
    member.run(stage, [&] {
      pack.data = scratch<2>(pack.packed_bytes());
      for (int64_t task = 0; task < pack.tasks(); ++task) pack(task);
      stage.x = pack.data;
    });
  }

  Project project(int64_t width, const Const& weight, int64_t n, const Const& bias, const float* residual, float* out) const {
    return {k, {}, batch, width, weight, n, block_rows(n, threads), bias, {residual, DType::f32}, {out, DType::f32}};
  }

  void attention(ThreadTeam::Member& member, int64_t b, const Cache& keys, const Cache& values) const {
    const int64_t heads = rows_of(b, q) / keys.head_dim, width = heads * keys.head_dim;
    const Const wq = matrix_of(b, q);
    Qkv qkv{k, {}, batch, 1, hidden, heads, {wq, matrix_of(b, cpu::k), matrix_of(b, v)},
            {vector_of(b, q_bias), vector_of(b, k_bias), vector_of(b, v_bias)}, {vector_of(b, q_norm), vector_of(b, k_norm)},
            eps, cos, sin, positions, positions, keys, values, {queries, DType::f32, keys.head_dim}, threads};
    multiply(member, x, hidden, vector_of(b, mha_norm), wq.type, qkv);

    Attend attend{k, {queries, DType::f32}, batch, 1, heads, keys, values, positions, nullptr, layout[b * fields + window],
                  1.0f / std::sqrt(float(keys.head_dim)), Attend::splits_for(positions, batch), parts};
    Reduce reduce{attend, {context, DType::f32, keys.head_dim}};
    if (attend.splits == 1) {
      Whole whole{attend, reduce};
      member.run(whole);
    } else {
      member.run(attend);
      member.run(reduce);
    }
    const Const wo = matrix_of(b, o);
    Project out = project(width, wo, hidden, vector_of(b, o_bias), x, x);
    multiply(member, context, width, {}, wo.type, out);
  }

  void ffn(ThreadTeam::Member& member, int64_t b) const {
    const int64_t width = rows_of(b, gate);
    const Const g = matrix_of(b, gate), d = matrix_of(b, down);
    GateUp gate_up{k, {}, batch, hidden, g, matrix_of(b, up), width, block_rows(width, threads), vector_of(b, gate_bias),
                   vector_of(b, up_bias), {activation, DType::f32}};
    multiply(member, x, hidden, vector_of(b, ffn_norm), g.type, gate_up);
    Project out = project(width, d, hidden, vector_of(b, down_bias), x, x);
    multiply(member, activation, width, {}, d.type, out);
  }

  // Attention of one KV head of one sequence that fits one split: joined at once.
  struct Whole {
    const Attend& attend;
    const Reduce& reduce;
    int64_t tasks() const { return attend.pairs(); }
    void operator()(int64_t pair) const {
      attend(pair);
      reduce(pair);
    }
  };
};

// Shapes and dtypes of every block, as the operators of a single stage check theirs.
struct Sizes {
  int64_t width = 0, ffn_width = 0, part = 0;  // the widest attention, FFN and partial attention
};

Sizes check_blocks(const Step& s, const std::vector<Cache>& keys, const std::vector<Cache>& values, const Tensor& cos,
                   const Tensor& sin) {
  Sizes widest;
  const auto vector_in = [&](int64_t b, Field field, int64_t n, const char* what) {
    if (s.has(b, field)) vector(s.weight(b, field), n, what);
  };
  for (int64_t b = 0; b < s.blocks(); ++b) {
    for (int64_t f = 0; f < fields; ++f)
      STD_TORCH_CHECK(f == window ? s.layout[b * fields + f] >= 0
                                  : -1 <= s.layout[b * fields + f] && s.layout[b * fields + f] < int64_t(s.weights.size()),
                      "layout: ", s.layout[b * fields + f], " in block ", b, " is no place in weights");
    if (s.has(b, mha_norm)) {
      for (Field f : {q, k, v, o}) STD_TORCH_CHECK(s.has(b, f), "layout: block ", b, " lacks a projection");
      const Cache &ks = keys[b], &vs = values[b];
      check_pair(ks, vs);
      STD_TORCH_CHECK(ks.batch >= s.batch, "caches: room for a batch of ", s.batch, " is expected");
      vector_in(b, mha_norm, s.hidden, "attention norm");
      const int64_t heads = check_heads({matrix(s.weight(b, q), s.hidden, "q_weight"), matrix(s.weight(b, k), s.hidden, "k_weight"),
                                         matrix(s.weight(b, v), s.hidden, "v_weight")},
                                        s.rows_of(b, q), s.rows_of(b, k), s.rows_of(b, v), ks);
      const int64_t width = heads * ks.head_dim, kv_width = ks.heads * ks.head_dim;
      check_tables(cos, sin, ks.head_dim / 2);
      matrix(s.weight(b, o), width, "o_weight");
      STD_TORCH_CHECK(s.rows_of(b, o) == s.hidden, "o_weight: ", s.hidden, " rows are expected");
      vector_in(b, q_bias, width, "q_bias"), vector_in(b, k_bias, kv_width, "k_bias"), vector_in(b, v_bias, kv_width, "v_bias");
      vector_in(b, o_bias, s.hidden, "o_bias");
      vector_in(b, q_norm, ks.head_dim, "q_norm"), vector_in(b, k_norm, ks.head_dim, "k_norm");
      for (int64_t m = 0; m < s.batch; ++m)
        STD_TORCH_CHECK(0 <= s.positions[m] && s.positions[m] < std::min(ks.length, cos.size(0)), "positions: ",
                        s.positions[m], " is outside [0, ", std::min(ks.length, cos.size(0)), ")");
      widest.width = std::max(widest.width, width);
      widest.part = std::max(widest.part, s.batch * heads * (ks.head_dim + 2));
    }
    if (s.has(b, ffn_norm)) {
      for (Field f : {gate, up, down}) STD_TORCH_CHECK(s.has(b, f), "layout: block ", b, " lacks a projection");
      vector_in(b, ffn_norm, s.hidden, "FFN norm");
      const int64_t n = s.rows_of(b, gate);
      const Const g = matrix(s.weight(b, gate), s.hidden, "gate"), u = matrix(s.weight(b, up), s.hidden, "up");
      STD_TORCH_CHECK(s.rows_of(b, up) == n && value_type(u.type) == value_type(g.type), "up: the shape and dtype of gate are expected");
      matrix(s.weight(b, down), n, "down");
      STD_TORCH_CHECK(s.rows_of(b, down) == s.hidden, "down: ", s.hidden, " rows are expected");
      vector_in(b, gate_bias, n, "gate_bias"), vector_in(b, up_bias, n, "up_bias"), vector_in(b, down_bias, s.hidden, "down_bias");
      STD_TORCH_CHECK(!s.has(b, gate_bias) || !s.has(b, up_bias) || s.vector_of(b, gate_bias).type == s.vector_of(b, up_bias).type,
                      "up_bias: the dtype of gate_bias is expected");
      widest.ffn_width = std::max(widest.ffn_width, n);
    }
  }
  return widest;
}

}  // namespace

Tensor decode_step(Tensor tokens, Tensor positions, Tensor embedding, std::vector<Tensor> weights,
                   std::vector<int64_t> layout, std::vector<Tensor> caches, Tensor norm, double eps, Tensor head,
                   Optional head_bias, Tensor cos, Tensor sin, Optional skip) {
  const Kernels& kernel = kernels();
  STD_TORCH_CHECK(embedding.dim() == 2, "embedding: a matrix [vocabulary, hidden] is expected");
  const int64_t batch = tokens.numel(), hidden = norm.numel(), vocab = head.dim() == 2 ? head.size(0) : 0;
  STD_TORCH_CHECK(1 <= batch && batch <= kSkinnyRows, "tokens: 1 to ", kSkinnyRows, " are expected, not ", batch);
  STD_TORCH_CHECK(layout.size() % fields == 0, "layout: ", int64_t(fields), " numbers a block are expected");
  const int64_t blocks = int64_t(layout.size()) / fields;
  const auto* ids = check_places("tokens", tokens, {batch}, embedding.size(0));
  const auto* places = check_places("positions", positions, {batch}, INT64_MAX);
  const Const table = matrix(embedding, hidden, "embedding"), w = matrix(head, hidden, "head");
  const Const last_norm = vector(norm, hidden, "norm"), last_bias = vector(head_bias, vocab, "head_bias");
  const bool* mask = nullptr;
  if (skip.has_value()) {
    STD_TORCH_CHECK(skip->is_cpu() && skip->scalar_type() == ScalarType::Bool && skip->dim() == 1 &&
                        skip->is_contiguous() && skip->size(0) == 2 * blocks,
                    "skip: a contiguous CPU bool vector of ", 2 * blocks, " values is expected");
    mask = static_cast<const bool*>(skip->const_data_ptr());
  }
  std::vector<Cache> keys(blocks), values(blocks);
  size_t used = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    if (layout[b * fields + mha_norm] < 0) continue;
    STD_TORCH_CHECK(used + 2 <= caches.size(), "caches: keys and values for each block with attention are expected");
    keys[b] = cache_of(caches[used++], "k_cache");
    values[b] = cache_of(caches[used++], "v_cache");
  }
  STD_TORCH_CHECK(used == caches.size(), "caches: ", int64_t(used), " are expected, not ", int64_t(caches.size()));

  Step step{kernel, batch, hidden, float(eps), weights, layout, mask, places,
            static_cast<const float*>(cos.const_data_ptr()), static_cast<const float*>(sin.const_data_ptr()), 1,
            nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
  const Sizes widest = check_blocks(step, keys, values, cos, sin);
  Tensor logits = new_tensor(embedding, {batch, vocab}, ScalarType::Float);
  auto* results = static_cast<float*>(logits.mutable_data_ptr());

  const int64_t splits = Attend::splits_for(places, batch), widths = std::max({hidden, widest.width, widest.ffn_width});
  // A long sequence's partial attention gets memory that is given back.
  const int64_t partial = splits * widest.part;
  std::optional<Tensor> large;
  if (partial > kKeptFloats) large = new_tensor(embedding, {partial}, ScalarType::Float);
  const int64_t packed_bytes = kernel.packed_bytes(DType::f32, widths, batch);  // no other dtype takes more
  const auto aligned = [](int64_t floats) { return (floats + 15) / 16 * 16; };
  char* memory = scratch<0>(4 * (aligned(batch * hidden) + 2 * aligned(batch * widest.width) +
                                 aligned(batch * widest.ffn_width) + aligned(large ? 0 : partial)) + packed_bytes);
  const auto take = [&](int64_t floats) {
    auto* start = reinterpret_cast<float*>(memory);
    memory += aligned(floats) * 4;
    return start;
  };
  step.x = take(batch * hidden);
  step.queries = take(batch * widest.width);
  step.context = take(batch * widest.width);
  step.activation = take(batch * widest.ffn_width);
  step.parts = large ? static_cast<float*>(large->mutable_data_ptr()) : take(partial);
  step.packed = memory;
  for (int64_t m = 0; m < batch; ++m) kernel.to_float(table.row(ids[m]), table.type, hidden, step.x + m * hidden);

  ThreadTeam team(blocks * 10 + 2);  // at most: packing and multiplying four times, attention twice
  step.threads = team.size();
  team.run([&](ThreadTeam::Member& member) {
    for (int64_t b = 0; b < blocks; ++b) {
      if (step.runs(b, false)) step.attention(member, b, keys[b], values[b]);
      if (step.runs(b, true)) step.ffn(member, b);
    }
    Project last = step.project(hidden, w, vocab, last_bias, nullptr, results);
    step.multiply(member, step.x, hidden, last_norm, w.type, last);
  });
  return logits;
}

}  // namespace pyprune::cpu

STABLE_TORCH_LIBRARY_IMPL(pyprune, CPU, m) {
  m.impl("decode_step", TORCH_BOX(&pyprune::cpu::decode_step));
}
