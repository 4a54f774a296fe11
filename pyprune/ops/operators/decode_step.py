"""One decode step of a whole decoder.

One decode step of a whole decoder, one token for each of B (up to 64) sequences: row tokens [B] of embedding [V, H],
every block, final norm and head as `norm_head`. Activations are float32. layout: for each block the numbers that LAYOUT
names, each a place in `weights`, -1 where the block has none; a block without `mha_norm` (`ffn_norm`) has no attention
(FFN). caches: keys and values of each block with attention, in order. skip: two flags a block, attention and FFN, as
for the operators of a single stage. Gives float32 logits [B, V].
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune.ops.checks import check_places, expect
from pyprune.ops.formulas import wide
from pyprune.ops.schemas import LAYOUT
from pyprune.ops.specification import Operator
from pyprune.ops.weight_formats import plain

SCHEMA = (
    "(Tensor tokens, Tensor positions, Tensor embedding, Tensor[] weights, int[] layout, "
    "Tensor(a!)[] caches, Tensor norm, float eps, Tensor head, Tensor? head_bias, Tensor cos, Tensor sin, "
    "Tensor? skip=None) -> Tensor"
)


def reference(
    tokens: Tensor, positions: Tensor, embedding: Tensor, weights: list[Tensor], layout: list[int],
    caches: list[Tensor], norm: Tensor, eps: float, head: Tensor, head_bias: Tensor | None, cos: Tensor, sin: Tensor,
    skip: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Every stage by its own operator, so that this is the whole step wherever those have kernels."""
    expect(
        tokens.dim() == 1 and 1 <= len(tokens) <= 64, f"tokens: 1 to 64 are expected, not shape {list(tokens.shape)}"
    )
    check_places("tokens", tokens, (len(tokens),), len(embedding))
    expect(len(layout) % len(LAYOUT) == 0, f"layout: {len(LAYOUT)} numbers a block are expected")
    blocks = len(layout) // len(LAYOUT)
    for name, place in zip(LAYOUT * blocks, layout, strict=True):
        good = place >= 0 if name == "window" else -1 <= place < len(weights)
        expect(good, f"layout: {place} is no place in weights")
    wanted = 2 * sum(place >= 0 for place in layout[:: len(LAYOUT)])
    expect(len(caches) == wanted, f"caches: {wanted} are expected, not {len(caches)}")
    expect(skip is None or tuple(skip.shape) == (2 * blocks,), f"skip: a bool vector of {2 * blocks} is expected")
    places, cached, run = positions.unsqueeze(1), iter(caches), torch.ops.pyprune
    x = plain(embedding[tokens], len(norm)).to(wide(embedding.dtype)).unsqueeze(1)
    for sublayer in range(0, 2 * blocks, 2):
        start = sublayer // 2 * len(LAYOUT)
        part = dict(zip(LAYOUT, layout[start : start + len(LAYOUT)], strict=True))
        window = part.pop("window")
        w = {name: None if place < 0 else weights[place] for name, place in part.items()}
        if w["mha_norm"] is not None:
            keys, values = next(cached), next(cached)
            q = run.norm_qkv_rope(
                x, w["mha_norm"], eps, w["q"], w["k"], w["v"], w["q_bias"], w["k_bias"], w["v_bias"], w["q_norm"],
                w["k_norm"], cos, sin, places, keys, values, skip, sublayer,
            )  # fmt: skip
            context = run.decode_attention(q, keys, values, places, q.shape[3] ** -0.5, skip, sublayer, None, window)
            x = run.linear_residual(context.flatten(2), w["o"], w["o_bias"], x, skip, sublayer)
        if w["ffn_norm"] is not None:
            a = run.norm_gate_up(
                x, w["ffn_norm"], eps, w["gate"], w["up"], w["gate_bias"], w["up_bias"], skip, sublayer + 1
            )
            x = run.linear_residual(a, w["down"], w["down_bias"], x, skip, sublayer + 1)
    return run.norm_head(x.squeeze(1), norm, eps, head, head_bias)


def fake(tokens: Tensor, embedding: Tensor, head: Tensor) -> Tensor:
    return embedding.new_empty(tokens.shape[0], head.shape[0], dtype=wide(embedding.dtype))


OPERATOR = Operator(SCHEMA, fake, reference, kernels=("cpu",))
