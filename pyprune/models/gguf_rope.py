"""RoPE in GGUF files: llama.cpp's metadata, its frequency divisors, and the order of the rows that rotate."""

from __future__ import annotations

from math import isfinite
from typing import Any

import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.models.gguf_file import GGUFFile
from pyprune.models.protocol import DecoderLike

# Frequency divisors that llama.cpp's converter computes for Llama 3's RoPE.
DIVISORS = "rope_freqs.weight"
# Metadata under "ARCHITECTURE.rope." that says nothing about the computation, or is used below. Any other would change
# it.
_KEYS = {"freq_base", "dimension_count", "scaling.type", "scaling.factor", "scaling.original_context_length",
         "scaling.finetuned", "scale_linear"}  # fmt: skip
# transformers' parameters of YaRN, and the values of the others at which llama.cpp computes the same.
_YARN = {"rope_type", "rope_theta", "factor", "original_max_position_embeddings"}
_YARN_FIXED = {"beta_fast": 32, "beta_slow": 1, "truncate": True}


def rotary_pairs(rows: Tensor, heads: int) -> Tensor:
    """Rows of q or k `[heads*head_dim, ...]` in Hugging Face's order (the two that rotate together are half a head
    apart) as a view `[heads, head_dim/2, 2, ...]` in llama.cpp's (they are neighbours)."""
    return rows.view(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).transpose(1, 2)


def rotary_neighbours(rows: Tensor, heads: int) -> Tensor:
    """Rows of q or k `[heads*head_dim, ...]` from Hugging Face's order to llama.cpp's."""
    return rotary_pairs(rows, heads).reshape(rows.shape)


def rope_parameters(file: GGUFFile, architecture: str, context: int, head_dim: int) -> dict[str, Any]:
    """transformers' `rope_parameters` for the file's RoPE; InputError for one that they cannot express."""
    where, prefix = str(file.path), f"{architecture}.rope."
    stated = {key.removeprefix(prefix): file.value(key) for key in file.metadata_keys() if key.startswith(prefix)}
    for key, value in stated.items():
        if key not in _KEYS:
            raise InputError(f"{where}: {prefix}{key} = {value} is not supported")
        text = key == "scaling.type"
        if not isinstance(value, str if text else (int, float)):
            raise InputError(f"{where}: {prefix}{key} is {value!r}; a {'name' if text else 'number'} is expected")
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": stated.get("freq_base", 10000.0)}
    factor = float(stated.get("scaling.factor") or stated.get("scale_linear") or 1.0)
    kind = stated.get("scaling.type") or ("linear" if factor != 1.0 else "none")
    if kind == "linear":
        parameters.update(rope_type="linear", factor=factor)
    elif kind == "yarn":
        original = stated.get("scaling.original_context_length") or context
        if not isfinite(original) or original < 1:
            raise InputError(
                f"{where}: {prefix}scaling.original_context_length is {original!r}; a positive number is expected"
            )
        parameters.update(rope_type="yarn", factor=factor, original_max_position_embeddings=int(original))
    elif kind != "none":
        raise InputError(f"{where}: {prefix}scaling.type {kind} is not supported; accepted: none, linear, yarn")
    for name in ("rope_factors_long.weight", "rope_factors_short.weight"):
        if name in file.tensors:
            raise InputError(f"{where}: tensor {name} is not supported")
    if DIVISORS not in file.tensors:
        return parameters
    if parameters["rope_type"] != "default":
        raise InputError(f"{where}: tensor {DIVISORS} together with {prefix}scaling.type {kind} is not supported")
    right_shape = file.tensors[DIVISORS].shape == (head_dim // 2,)
    divisors = file.read(DIVISORS).float().tolist() if right_shape else []
    if not right_shape or not all(0 < d < float("inf") for d in divisors):
        raise InputError(f"{where}: tensor {DIVISORS} must hold {head_dim // 2} positive numbers")
    # LongRoPE with the same divisors at every length says exactly this, in a form that can be saved.
    return {
        **parameters,
        "rope_type": "longrope",
        "short_factor": divisors,
        "long_factor": divisors,
        "factor": 1.0,
        "attention_factor": 1.0,
        "original_max_position_embeddings": context,
    }


def rope_metadata(decoder: DecoderLike) -> tuple[dict[str, Any], Tensor | None]:
    """What a file states of a decoder's RoPE: metadata under "ARCHITECTURE.rope.", and where its frequencies are not
    theta's own their divisors `[head_dim/2]` float32.

    InputError for frequencies that depend on the length, and for an attention factor.
    """
    rope, parameters = decoder.rope, decoder.config["rope_parameters"]
    metadata: dict[str, Any] = {"freq_base": float(parameters["rope_theta"])}
    if rope.kind == "default":
        return metadata, None
    if rope.kind == "linear":
        return {**metadata, "scaling.type": "linear", "scaling.factor": float(parameters["factor"])}, None
    if rope.kind == "yarn":
        for key, value in parameters.items():
            if key not in _YARN and value is not None and value != _YARN_FIXED.get(key):
                raise InputError(f"RoPE of kind yarn with {key} {value}: llama.cpp has its own")
        original = parameters.get("original_max_position_embeddings") or decoder.config["max_position_embeddings"]
        yarn = {"scaling.type": "yarn", "scaling.factor": float(parameters["factor"]),
                "scaling.original_context_length": int(original)}  # fmt: skip
        return {**metadata, **yarn}, None
    if rope.limit is not None:
        raise InputError(f"RoPE of kind {rope.kind}: its frequencies depend on the length, llama.cpp's do not")
    if rope.scaling != 1.0:
        raise InputError(f"RoPE of kind {rope.kind} with an attention factor of {rope.scaling}")
    dim = 2 * len(rope.inv_freq)
    theta_frequencies = 1.0 / parameters["rope_theta"] ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    return metadata, (theta_frequencies / rope.inv_freq.double().cpu()).float()
