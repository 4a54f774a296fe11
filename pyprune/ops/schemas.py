"""The operators' contracts: schema, shapes and dtypes, each in one place. No imports: the build reads this file too.

Letters in shapes: B batch, T tokens, H hidden size, N heads, G KV heads, D head size, F FFN width, V vocabulary,
`...` any leading dimensions. Common to all operators:

* Weights are `[out, in]`, float32, bfloat16 or float16; rows may lie further apart than their length (padded strides).
* Activations are float32 or the weights' dtype; results have the activations' dtype unless said otherwise.
* Any size is allowed; products are accumulated in float32. One row is as good as many: for few rows (up to 64) the
  weights are streamed once through fused kernels, for many rows the products are torch's own GEMM.
* `skip` is a bool vector with one flag a unit (a block's half, say) and `unit` the index of this one. Where the flag is
  set the operator does nothing: `linear_residual` gives the residual back, the others give zeros and touch no cache.
* A wrong shape, dtype, device or index is a RuntimeError that names the argument and what is expected.
* There are no gradients: where one would be recorded (grad mode on, an input that requires grad) it is a RuntimeError.
"""

from __future__ import annotations

import hashlib

SCHEMAS = {
    # x [B, T, H] -> RMSNorm (norm [H]) -> q [N*D, H], k and v [G*D, H] (+ biases) -> q/k-norm [D] where given -> RoPE
    # with cos, sin [P, D/2] float32 at positions [B, T] int64 -> k and v written to the caches [B', G, L, D] (B' >= B)
    # at [b, :, positions[b, t]]. Gives q [B, T, N, D].
    "norm_qkv_rope": "(Tensor x, Tensor norm, float eps, Tensor q_weight, Tensor k_weight, Tensor v_weight, "
    "Tensor? q_bias, Tensor? k_bias, Tensor? v_bias, Tensor? q_norm, Tensor? k_norm, Tensor cos, Tensor sin, "
    "Tensor positions, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor? skip=None, int unit=0) -> Tensor",
    # softmax(scale * q k^T) v for q [B, T, N, D] against caches [B', G, L, D]: query (b, t) sees cache rows
    # 0 .. positions[b, t]. Query head n uses KV head n // (N / G). Gives [B, T, N, D].
    "decode_attention": "(Tensor q, Tensor k_cache, Tensor v_cache, Tensor positions, float scale, Tensor? skip=None, "
    "int unit=0) -> Tensor",
    # residual [..., O] + x [..., K] weight^T [O, K] + bias [O]. Gives [..., O] in the residual's dtype.
    "linear_residual": "(Tensor x, Tensor weight, Tensor? bias, Tensor residual, Tensor? skip=None, "
    "int unit=0) -> Tensor",
    # silu(h gate^T + gate_bias) * (h up^T + up_bias) with h = RMSNorm(x [..., H]); gate, up [F, H]. Gives [..., F].
    "norm_gate_up": "(Tensor x, Tensor norm, float eps, Tensor gate, Tensor up, Tensor? gate_bias, Tensor? up_bias, "
    "Tensor? skip=None, int unit=0) -> Tensor",
    # RMSNorm(x [..., H]) weight^T [V, H] + bias [V]. Gives float32 logits [..., V].
    "norm_head": "(Tensor x, Tensor norm, float eps, Tensor weight, Tensor? bias=None) -> Tensor",
    # -log softmax(h weight^T + bias)[target] for each row, h = x [..., H], RMS-normalised where norm is given. Targets
    # [...] int64 in [0, V) or ignore_index, whose loss is 0. Logits never exist as a whole. Gives float32 [...].
    "linear_cross_entropy": "(Tensor x, Tensor weight, Tensor targets, Tensor? norm=None, float eps=0.0, "
    "Tensor? bias=None, int ignore_index=-100) -> Tensor",
    # x [..., K] weight^T [O, K] + bias [O], any K and O. Gives [..., O].
    "padded_linear": "(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor",
}


def digest() -> str:
    """A short name for this set of schemas. It is part of the native library's file name, so that a library built for
    other schemas is never loaded: its kernels would read arguments that are not there."""
    text = "\n".join(f"{name}{schema}" for name, schema in sorted(SCHEMAS.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
