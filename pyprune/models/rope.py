"""Rotary embeddings as data, and how a model's configuration describes them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.models.tensors import one_line
from pyprune.models.transformers_config import transformers_config


@dataclass(frozen=True)
class Rope:
    """Rotary embedding (RoFormer; the half-split form of Llama).

    `inv_freq [head_dim/2]` float32; cosine and sine are multiplied by `scaling`. `limit` is the length up to which
    these frequencies hold, None when they hold everywhere. Longer sequences have those of LongRoPE's long context,
    `long [head_dim/2]`, or where that is None those of dynamic NTK scaling, from `theta` and `factor`.
    """

    inv_freq: Tensor
    scaling: float = 1.0
    kind: str = "default"
    limit: int | None = None
    long: Tensor | None = None
    theta: float = 10000.0
    factor: float = 1.0

    def tables(self, length: int, prompt: int = 0) -> tuple[Tensor, Tensor]:
        """Cosine and sine, each `[length, head_dim/2]` float32, for positions 0 .. length-1 of one sequence.

        A token keeps the frequencies of the length at which it was computed: the prompt's, for its first `prompt`
        tokens; for a later one at p, decoded on its own, those of length p+1. So does transformers, in a model that has
        run nothing longer before (`modeling_rope_utils.dynamic_rope_update`): keys in the cache stay as they are.
        """
        positions = torch.arange(length, device=self.inv_freq.device)
        angles = torch.outer(positions.to(torch.float32), self.inv_freq)
        limit = self.limit
        if limit is not None and max(length, prompt) > limit:
            computed_at = (positions + 1).clamp(min=prompt)
            beyond = computed_at > limit
            angles[beyond] = positions[beyond, None].to(torch.float32) * self._frequencies(computed_at[beyond], limit)
        return angles.cos() * self.scaling, angles.sin() * self.scaling

    def _frequencies(self, lengths: Tensor, limit: int) -> Tensor:
        """The frequencies at `lengths [N]`, all beyond `limit`: `[N or 1, head_dim/2]` float32.

        Dynamic NTK scaling: theta grows by (factor*length/limit - (factor-1))^(D/(D-2)).
        """
        if self.long is not None:
            return self.long.unsqueeze(0)
        dim = 2 * len(self.inv_freq)
        growth = self.factor * lengths / limit - (self.factor - 1)
        theta = self.theta * growth ** (dim / (dim - 2))
        return 1.0 / theta[:, None] ** (torch.arange(0, dim, 2, device=lengths.device).to(torch.float32) / dim)

    def to(self, device: torch.device | str | None) -> Rope:
        """The same rotation with its frequencies on another device."""
        long = None if self.long is None else self.long.to(device=device)
        return replace(self, inv_freq=self.inv_freq.to(device=device), long=long)


def rope_from_config(config: dict[str, Any], where: str) -> Rope:
    """The rotary embedding that `config` (Hugging Face keys, with `rope_parameters`) describes.

    Kinds other than `default` are computed by transformers' own ROPE_INIT_FUNCTIONS. InputError for a kind it does not
    know or parameters it cannot use, and for a rotation of only a part of each head. `default` turns whole heads and
    takes no notice of a `partial_rotary_factor`, as transformers does in these families.
    """
    parameters = config["rope_parameters"]
    kind = parameters.get("rope_type", "default")
    if kind == "default":
        exponent = torch.arange(0, config["head_dim"], 2, dtype=torch.float) / config["head_dim"]
        inv_freq = 1.0 / (parameters["rope_theta"] ** exponent)
        _require_positive(inv_freq, 1.0, parameters, where)
        return Rope(inv_freq)
    inv_freq, scaling = _computed(config, where)
    rope = Rope(inv_freq, scaling, kind)
    if kind == "dynamic":
        factor, limit = parameters["factor"], int(config["max_position_embeddings"])
        if not 0 < factor < math.inf:
            raise InputError(f"{where}: rope_parameters {parameters}: factor {factor}; a positive number is expected")
        return replace(rope, limit=limit, theta=float(parameters["rope_theta"]), factor=float(factor))
    if kind == "longrope" and parameters["short_factor"] != parameters["long_factor"]:
        limit = int(parameters["original_max_position_embeddings"])
        return replace(rope, limit=limit, long=_computed(config, where, limit + 1)[0])
    return rope


def context_length(config: dict[str, Any], rope: Rope) -> int:
    """The longest sequence that the model is meant for: `max_position_embeddings`, and with dynamic NTK scaling, which
    starts there, `factor` times as much."""
    return int(config["max_position_embeddings"] * max(1.0, rope.factor))


def _computed(config: dict[str, Any], where: str, length: int | None = None) -> tuple[Tensor, float]:
    """Frequencies `[head_dim/2]` float32 and scaling as transformers computes them for a sequence of `length`."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters, head_dim = config["rope_parameters"], config["head_dim"]
    kind = parameters["rope_type"]
    if kind not in ROPE_INIT_FUNCTIONS:
        raise InputError(f"{where}: rope_type {kind} is not known; accepted: default, {', '.join(ROPE_INIT_FUNCTIONS)}")
    try:
        inv_freq, scaling = ROPE_INIT_FUNCTIONS[kind](transformers_config(config, where), seq_len=length)
    except (KeyError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise InputError(f"{where}: rope_parameters of kind {kind} cannot be used ({one_line(repr(error))})") from None
    if inv_freq.shape != (head_dim // 2,):
        raise InputError(
            f"{where}: rope_parameters give {inv_freq.numel()} frequencies; head_dim {head_dim} needs {head_dim // 2}"
            " (a partial rotation is not supported)"
        )
    _require_positive(inv_freq, float(scaling), parameters, where)
    return inv_freq.to(torch.float32), float(scaling)


def _require_positive(inv_freq: Tensor, scaling: float, parameters: dict[str, Any], where: str) -> None:
    if not bool((inv_freq > 0).all() and torch.isfinite(inv_freq).all()) or not 0 < scaling < math.inf:
        raise InputError(f"{where}: rope_parameters {parameters}: the frequencies they give are not all positive")
