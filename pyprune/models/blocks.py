"""Transformer blocks as data: weights and sizes.

Nothing here computes. A block is two sublayers that each add to the residual stream,

    x = x + MHA(RMSNorm(x));   x = x + FFN(RMSNorm(x)),

and either can be absent. Weights are in torch's layout, `[out_features, in_features]`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

Change = Callable[[Tensor], Tensor]


class Weights:
    """Whatever consists of named tensors."""

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor, with its name."""
        raise NotImplementedError

    def parameters(self) -> int:
        """Number of parameters."""
        return sum(tensor.numel() for _, tensor in self.tensors())


@dataclass(frozen=True)
class Linear(Weights):
    """A projection: `weight [out, in]` and, where the model has one, `bias [out]`."""

    weight: Tensor
    bias: Tensor | None = None

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield "weight", self.weight
        if self.bias is not None:
            yield "bias", self.bias

    def map(self, change: Change) -> Linear:
        weight, bias = change(self.weight), None if self.bias is None else change(self.bias)
        return self if weight is self.weight and bias is self.bias else Linear(weight, bias)


@dataclass(frozen=True)
class MHA(Weights):
    """The attention sublayer: `norm [hidden]`, `q [heads*head_dim, hidden]`, `k` and `v [kv_heads*head_dim, hidden]`,
    `o [hidden, heads*head_dim]`; `q_norm` and `k_norm [head_dim]` where the family has them.

    `window`: how many positions a query sees, its own among them: p sees p-window+1 .. p. That is `sliding_window` in
    transformers (`masking_utils.sliding_window_overlay`: key > query - window). 0: all up to its own.
    """

    norm: Tensor
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    heads: int
    kv_heads: int
    head_dim: int
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    window: int = 0

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.heads // self.kv_heads

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield "norm", self.norm
        for name, linear in (("q", self.q), ("k", self.k), ("v", self.v), ("o", self.o)):
            for part, tensor in linear.tensors():
                yield f"{name}.{part}", tensor
        for name, norm in (("q_norm", self.q_norm), ("k_norm", self.k_norm)):
            if norm is not None:
                yield name, norm

    def map(self, change: Change) -> MHA:
        q_norm, k_norm = (None if norm is None else change(norm) for norm in (self.q_norm, self.k_norm))
        q, k, v, o = (linear.map(change) for linear in (self.q, self.k, self.v, self.o))
        return replace(self, norm=change(self.norm), q=q, k=k, v=v, o=o, q_norm=q_norm, k_norm=k_norm)


@dataclass(frozen=True)
class FFN(Weights):
    """The feed-forward sublayer: `norm [hidden]`, `gate` and `up [width, hidden]`, `down [hidden, width]`, SiLU."""

    norm: Tensor
    gate: Linear
    up: Linear
    down: Linear

    @property
    def width(self) -> int:
        return self.gate.weight.shape[0]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield "norm", self.norm
        for name, linear in (("gate", self.gate), ("up", self.up), ("down", self.down)):
            for part, tensor in linear.tensors():
                yield f"{name}.{part}", tensor

    def map(self, change: Change) -> FFN:
        return FFN(change(self.norm), self.gate.map(change), self.up.map(change), self.down.map(change))


@dataclass(frozen=True)
class Block(Weights):
    """One Transformer block. `index` is its place in the original, unpruned model."""

    index: int
    mha: MHA | None
    ffn: FFN | None

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, sublayer in (("mha", self.mha), ("ffn", self.ffn)):
            if sublayer is not None:
                for part, tensor in sublayer.tensors():
                    yield f"{name}.{part}", tensor

    def map(self, change: Change) -> Block:
        """The same block with `change` applied to every tensor."""
        mha = None if self.mha is None else self.mha.map(change)
        ffn = None if self.ffn is None else self.ffn.map(change)
        return Block(self.index, mha, ffn)


def named_tensors(
    embedding: Tensor, blocks: Sequence[Block], norm: Tensor, head: Linear, tied: bool
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a decoder once, with its name ("blocks.3.mha.q.weight"); a tied head is not repeated."""
    yield "embedding", embedding
    for position, block in enumerate(blocks):
        for name, tensor in block.tensors():
            yield f"blocks.{position}.{name}", tensor
    yield "norm", norm
    for name, tensor in head.tensors():
        if not (tied and name == "weight"):
            yield f"head.{name}", tensor
