"""Rotary frequencies from a model's configuration."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.models.decoder import Rope
from pyprune.models.tensors import one_line


def rope_from_config(config: dict[str, Any], where: str) -> Rope:
    """The rotary embedding that `config` (Hugging Face keys, with `rope_parameters`) describes.

    Kinds other than `default` are computed by transformers' own ROPE_INIT_FUNCTIONS. InputError for a kind it does not
    know or parameters it cannot use, and for a rotation of only a part of each head.
    """
    parameters = config["rope_parameters"]
    kind = parameters.get("rope_type", "default")
    head_dim = config["head_dim"]
    if kind == "default":
        exponent = torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim
        inv_freq = 1.0 / (parameters["rope_theta"] ** exponent)
        _require_positive(inv_freq, 1.0, parameters, where)
        return Rope(inv_freq)

    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from pyprune.models.families.family import transformers_config

    if kind not in ROPE_INIT_FUNCTIONS:
        raise InputError(f"{where}: rope_type {kind} is not known; accepted: default, {', '.join(ROPE_INIT_FUNCTIONS)}")
    try:
        inv_freq, scaling = ROPE_INIT_FUNCTIONS[kind](transformers_config(config, where))
    except (KeyError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise InputError(f"{where}: rope_parameters of kind {kind} cannot be used ({one_line(repr(error))})") from None
    if inv_freq.shape != (head_dim // 2,):
        raise InputError(
            f"{where}: rope_parameters give {inv_freq.numel()} frequencies; head_dim {head_dim} needs {head_dim // 2}"
            " (a partial rotation is not supported)"
        )
    _require_positive(inv_freq, float(scaling), parameters, where)
    return Rope(inv_freq.to(torch.float32), float(scaling), kind, _limit(kind, config))


def _require_positive(inv_freq: Tensor, scaling: float, parameters: dict[str, Any], where: str) -> None:
    if not bool((inv_freq > 0).all() and torch.isfinite(inv_freq).all()) or not 0 < scaling < math.inf:
        raise InputError(f"{where}: rope_parameters {parameters}: the frequencies they give are not all positive")


def _limit(kind: str, config: dict[str, Any]) -> int | None:
    """The length beyond which transformers computes other frequencies."""
    parameters = config["rope_parameters"]
    if kind == "dynamic":
        return int(config["max_position_embeddings"])
    if kind == "longrope" and parameters["short_factor"] != parameters["long_factor"]:
        return int(parameters["original_max_position_embeddings"])
    return None
