"""A library of six alternatives for each sublayer of a model: as candidates, and as transformers' modules.

Left out, three widths, a mean update, a linear map: what searches over block libraries try (Puzzletron, Minitron).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyprune import Decoder, Pruning

SHARES = (0.75, 0.5, 0.25)
"""Of the FFN's neurons that stay."""


@dataclass(frozen=True)
class Alternative:
    """One candidate, and how transformers' layer of that block is changed for it (a function of the layer that gives
    the modules to put there by their names)."""

    block: int
    candidate: Any
    modules: Callable[[Any], dict[str, nn.Module]]


def library(decoder: Decoder, blocks: range) -> list[Alternative]:
    """Twelve alternatives for each of these blocks, six a sublayer."""
    generator = torch.Generator().manual_seed(0)
    hidden = decoder.hidden_size
    alternatives = []
    for index in blocks:
        for kind in ("mha", "ffn"):
            mean = 0.02 * torch.randn(hidden, generator=generator)
            linear = nn.Linear(hidden, hidden).requires_grad_(False)
            nn.init.normal_(linear.weight, std=0.3 / math.sqrt(hidden), generator=generator)
            nn.init.zeros_(linear.bias)
            candidates = [
                (Pruning(**{kind: [index]}), _in_place(kind, torch.zeros_like)),
                ({(index, kind): mean}, _in_place(kind, lambda x, mean=mean: mean.expand_as(x))),
                ({(index, kind): linear}, _in_place(kind, linear)),
                *_widths(decoder, index, kind),
            ]
            alternatives += [Alternative(index, candidate, modules) for candidate, modules in candidates]
    return alternatives


def _widths(decoder: Decoder, index: int, kind: str) -> Iterator[tuple[Pruning, Callable[[Any], dict[str, nn.Module]]]]:
    block = decoder.blocks[index]
    if kind == "ffn":
        width = block.ffn.width
        for share in SHARES:
            kept = round(share * width)
            yield (
                Pruning(neurons={index: list(range(kept, width))}),
                lambda layer, kept=kept: {"mlp": _narrow_mlp(layer.mlp, kept)},
            )
        return
    groups = block.mha.kv_heads
    for first in range(3):  # of three groups one, another, and two
        gone = [first] if first < 2 else list(range(1, groups))
        stay = [group for group in range(groups) if group not in gone]
        yield (
            Pruning(kv_groups={index: gone}),
            lambda layer, stay=stay: {"self_attn": _narrow_attention(layer.self_attn, stay)},
        )


@contextmanager
def swapped(layer: Any, modules: dict[str, nn.Module]) -> Iterator[None]:
    """A layer with other modules under these names."""
    before = {name: getattr(layer, name) for name in modules}
    try:
        for name, module in modules.items():
            setattr(layer, name, module)
        yield
    finally:
        for name, module in before.items():
            setattr(layer, name, module)


@torch.inference_mode()
def naive_candidates(model: Any, ids: Tensor, changes: list[tuple[int, dict[str, nn.Module]]]) -> list[float]:
    """Perplexity of the whole model, then with each change in turn: one forward pass of all samples each."""
    layers = model.model.layers

    def perplexity() -> float:
        logits = model(ids, use_cache=False).logits[:, :-1].float()
        return math.exp(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))

    values = [perplexity()]
    for block, modules in changes:
        with swapped(layers[block], modules):
            values.append(perplexity())
    return values


class _Attention(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        return self.function(hidden_states), None


class _Mapped(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.function(hidden_states)


def _in_place(kind: str, function: Callable[[Tensor], Tensor]) -> Callable[[Any], dict[str, nn.Module]]:
    """A function of the residual stream in a sublayer's place, whose norm goes with it."""
    if kind == "mha":
        return lambda layer: {"input_layernorm": nn.Identity(), "self_attn": _Attention(function)}
    return lambda layer: {"post_attention_layernorm": nn.Identity(), "mlp": _Mapped(function)}


def _narrow_mlp(mlp: Any, kept: int) -> nn.Module:
    narrow = copy.copy(mlp)
    narrow._modules = dict(mlp._modules)
    narrow.gate_proj, narrow.up_proj = (_linear(p.weight[:kept]) for p in (mlp.gate_proj, mlp.up_proj))
    narrow.down_proj = _linear(mlp.down_proj.weight[:, :kept])
    return narrow


def _narrow_attention(attention: Any, stay: list[int]) -> nn.Module:
    narrow = copy.copy(attention)
    narrow._modules = dict(attention._modules)
    size, group = attention.head_dim, attention.num_key_value_groups
    kv = torch.cat([torch.arange(g * size, (g + 1) * size) for g in stay])
    q = torch.cat([torch.arange(g * group * size, (g + 1) * group * size) for g in stay])
    narrow.q_proj = _linear(attention.q_proj.weight[q])
    narrow.k_proj, narrow.v_proj = (_linear(p.weight[kv]) for p in (attention.k_proj, attention.v_proj))
    narrow.o_proj = _linear(attention.o_proj.weight[:, q])
    return narrow


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=False)
    return linear
