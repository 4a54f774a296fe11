// The operators causal_attention and causal_attention_backward: attention of whole sequences in training. A task is a KV
// head of a sequence, so no bit of a result depends on the threads.
#include "scratch.h"
#include "tensors.h"

namespace pyprune::cpu {
namespace {

// Tensors [batch, heads, tokens, head_dim] whose values of a token and head lie side by side.
struct Sequences {
  Heads whole;
  int64_t batch, heads, tokens, head_dim, sequence;

  Sequences(const Tensor& t, const char* name) {
    STD_TORCH_CHECK(t.is_cpu() && t.dim() == 4 && (t.size(3) <= 1 || t.stride(3) == 1), name,
                    ": a CPU tensor [batch, heads, tokens, head_dim] with contiguous rows is expected");
    whole = {const_cast<void*>(t.const_data_ptr()), dtype_of(t, name), t.stride(1), t.stride(2)};
    batch = t.size(0), heads = t.size(1), tokens = t.size(2), head_dim = t.size(3), sequence = t.stride(0);
  }
  void expect(const char* name, int64_t batches, int64_t count, int64_t length, int64_t dim, DType type) const {
    STD_TORCH_CHECK(batch == batches && heads == count && tokens == length && head_dim == dim && whole.type == type, name,
                    ": [", batches, ", ", count, ", ", length, ", ", dim, "] of the dtype of q is expected");
  }
  // The heads from `head` on of a sequence.
  Heads from(int64_t b, int64_t head) const {
    Heads part = whole;
    part.data = static_cast<char*>(whole.data) + (b * sequence + head * whole.head) * size_of(whole.type);
    return part;
  }
};

struct Arguments {
  Sequences q, k, v;
  float* log_sums;
  int64_t group;

  Arguments(const Tensor& q_tensor, const Tensor& k_tensor, const Tensor& v_tensor, const Tensor& sums)
      : q(q_tensor, "q"), k(k_tensor, "k"), v(v_tensor, "v"), log_sums(static_cast<float*>(sums.mutable_data_ptr())), group(0) {
    STD_TORCH_CHECK(k.heads > 0 && q.heads % k.heads == 0, "k: a divisor of the ", q.heads, " heads of q is expected, not ",
                    k.heads, " heads");
    k.expect("k", q.batch, k.heads, q.tokens, q.head_dim, q.whole.type);
    v.expect("v", q.batch, k.heads, q.tokens, q.head_dim, q.whole.type);
    STD_TORCH_CHECK(sums.is_cpu() && sums.scalar_type() == ScalarType::Float && sums.is_contiguous() && sums.dim() == 3 &&
                        sums.size(0) == q.batch && sums.size(1) == q.heads && sums.size(2) == q.tokens,
                    "log_sums: a contiguous CPU float32 tensor [", q.batch, ", ", q.heads, ", ", q.tokens, "] is expected");
    group = q.heads / k.heads;
  }
  void expect_like_q(const Sequences& other, const char* name) const {
    other.expect(name, q.batch, q.heads, q.tokens, q.head_dim, q.whole.type);
  }
  // What one KV head needs, `rest` filled in by the caller.
  CausalHeads heads(int64_t task, double scale) const {
    const int64_t b = task / k.heads, kv = task % k.heads;
    CausalHeads h{q.tokens, q.head_dim, group, float(scale), q.from(b, kv * group), k.from(b, kv), v.from(b, kv), {},
                  log_sums + (b * q.heads + kv * group) * q.tokens, {}, {}, {}, {}};
    return h;
  }
  // Calls f(task, its sequence, its KV head).
  template <class F>
  void each(const F& f) const {
    parallel(q.batch * k.heads, q.batch * q.heads * q.tokens * q.tokens * 4, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) f(task, task / k.heads, task % k.heads);
    });
  }
};

}  // namespace

Tensor causal_attention(Tensor q, Tensor k, Tensor v, double scale, Tensor log_sums) {
  const Arguments given(q, k, v, log_sums);
  Tensor store = new_tensor(q, {given.q.batch, given.q.tokens, given.q.heads, given.q.head_dim}, q.scalar_type());
  const Tensor out = torch::stable::transpose(store, 1, 2);
  const Sequences results(out, "out");
  const auto& kernel = kernels();
  given.each([&](int64_t task, int64_t b, int64_t kv) {
    CausalHeads h = given.heads(task, scale);
    h.out = results.from(b, kv * given.group);
    kernel.causal_attention(h, reinterpret_cast<float*>(scratch<0>(h.forward_floats() * 4)));
  });
  return out;
}

void causal_attention_backward(Tensor slope, Tensor q, Tensor k, Tensor v, Tensor out, Tensor log_sums, double scale, Tensor dq,
                               Tensor dk, Tensor dv) {
  const Arguments given(q, k, v, log_sums);
  const Sequences slopes(slope, "slope"), outs(out, "out"), q_slopes(dq, "dq"), k_slopes(dk, "dk"), v_slopes(dv, "dv");
  given.expect_like_q(slopes, "slope");
  given.expect_like_q(outs, "out");
  given.expect_like_q(q_slopes, "dq");
  k_slopes.expect("dk", given.k.batch, given.k.heads, given.k.tokens, given.k.head_dim, given.k.whole.type);
  v_slopes.expect("dv", given.k.batch, given.k.heads, given.k.tokens, given.k.head_dim, given.k.whole.type);
  const auto& kernel = kernels();
  given.each([&](int64_t task, int64_t b, int64_t kv) {
    CausalHeads h = given.heads(task, scale);
    const int64_t first = kv * given.group;
    h.out = outs.from(b, first), h.slope = slopes.from(b, first), h.dq = q_slopes.from(b, first);
    h.dk = k_slopes.from(b, kv), h.dv = v_slopes.from(b, kv);
    kernel.causal_attention_backward(h, reinterpret_cast<float*>(scratch<0>(h.backward_floats() * 4)));
  });
}

}  // namespace pyprune::cpu

STABLE_TORCH_LIBRARY_IMPL(pyprune, CPU, m) {
  m.impl("causal_attention", TORCH_BOX(&pyprune::cpu::causal_attention));
  m.impl("causal_attention_backward", TORCH_BOX(&pyprune::cpu::causal_attention_backward));
}
