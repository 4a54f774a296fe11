"""A decode step as one operator: on a CPU a token then costs one dispatch and one fork of the threads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyprune import ops
from pyprune.models.decoder import FFN, MHA, Decoder, Linear
from pyprune.ops.schemas import LAYOUT


class FusedStep:
    """`ops.decode_step` with a decoder's weights and caches filled in.

    caches: keys and values `[batch, kv_heads, length, head_dim]` of each block, None for one without attention.
    cos, sin: `[length, head_dim/2]` (`Rope.tables`).
    """

    def __init__(
        self, decoder: Decoder, caches: Sequence[tuple[Tensor, Tensor] | None], cos: Tensor, sin: Tensor
    ) -> None:
        self._decoder, self._cos, self._sin = decoder, cos, sin
        self._weights: list[Tensor] = []
        self._layout: list[int] = []
        for block in decoder.blocks:
            tensors = {**_mha_tensors(block.mha), **_ffn_tensors(block.ffn)}
            for name in LAYOUT:
                if name == "window":
                    self._layout.append(0 if block.mha is None else block.mha.window)
                else:
                    self._layout.append(self._index(tensors.get(name)))
        self._caches = [tensor for pair in caches if pair is not None for tensor in pair]

    def _index(self, tensor: Tensor | None) -> int:
        """Where `tensor` stands in the list of weights, to which it is appended; -1 for none."""
        if tensor is None:
            return -1
        self._weights.append(tensor)
        return len(self._weights) - 1

    def __call__(self, tokens: Tensor, positions: Tensor, skip: Tensor | None = None) -> Tensor:
        """Append tokens `[B]` at cache rows positions `[B]`; the next logits `[B, V]`, float32. skip: bool
        `[2 * blocks]`, attention and FFN of each block."""
        decoder = self._decoder
        tokens, positions = tokens.to(torch.int64).contiguous(), positions.contiguous()
        return ops.decode_step(
            tokens, positions, decoder.embedding, self._weights, self._layout, self._caches, decoder.norm, decoder.eps,
            decoder.head.weight, decoder.head.bias, self._cos, self._sin, skip,
        )  # fmt: skip


def _mha_tensors(mha: MHA | None) -> dict[str, Tensor | None]:
    if mha is None:
        return {}
    norms = {"mha_norm": mha.norm, "q_norm": mha.q_norm, "k_norm": mha.k_norm}
    return {**norms, **_linears(mha, "q", "k", "v", "o")}


def _ffn_tensors(ffn: FFN | None) -> dict[str, Tensor | None]:
    return {} if ffn is None else {"ffn_norm": ffn.norm, **_linears(ffn, "gate", "up", "down")}


def _linears(sublayer: MHA | FFN, *names: str) -> dict[str, Tensor | None]:
    linears: dict[str, Linear] = {name: getattr(sublayer, name) for name in names}
    weights = {name: linear.weight for name, linear in linears.items()}
    return {**weights, **{f"{name}_bias": linear.bias for name, linear in linears.items()}}
