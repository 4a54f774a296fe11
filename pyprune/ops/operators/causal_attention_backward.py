"""The gradients of `causal_attention`.

slope [B, N, T, D], the gradient of its result `out`; q, k, v, out and log_sums as that operator had and made them. dq,
dk and dv, of the shapes of q, k and v, a token's values of a head side by side, get the gradients. With P = exp(scale q
k^T - log_sums) for the keys up to the query, 0 behind it:

    dv = P^T slope,   S = P * (slope v^T - rowsum(slope * out)),   dq = scale S k,   dk = scale S^T q

and the sums of the query heads that share a KV head. Source: Dao et al. 2022 (FlashAttention), appendix B.
"""

from __future__ import annotations

from torch import Tensor

from pyprune.ops.formulas import wide
from pyprune.ops.operators.causal_attention import repeated, scores
from pyprune.ops.specification import Operator

SCHEMA = (
    "(Tensor slope, Tensor q, Tensor k, Tensor v, Tensor out, Tensor log_sums, float scale, "
    "Tensor(a!) dq, Tensor(b!) dk, Tensor(c!) dv) -> ()"
)


def reference(
    slope: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sums: Tensor, scale: float, dq: Tensor, dk: Tensor,
    dv: Tensor,
) -> None:  # fmt: skip
    p = (scores(q, k, scale) - log_sums[..., None]).exp()
    dtype, shape = wide(q.dtype), (*k.shape[:2], -1, *k.shape[2:])
    mean = (slope.to(dtype) * out.to(dtype)).sum(-1, keepdim=True)
    s = (p * ((slope @ repeated(v, q).mT).to(dtype) - mean) * scale).to(q.dtype)
    dq.copy_(s @ repeated(k, q))
    dk.copy_((s.mT @ q).view(shape).sum(2))
    dv.copy_((p.to(q.dtype).mT @ slope).view(shape).sum(2))


def fake() -> None:
    return None


OPERATOR = Operator(SCHEMA, fake, reference, kernels=("cpu",))
