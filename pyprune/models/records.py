"""The record that a pruned checkpoint carries: `pruning.json` and `original_config.json`, checked as plain JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyprune.checks import is_int
from pyprune.errors import InputError

_INDICES = ("blocks", "mha", "ffn")
_LAYERS = {"kv_groups": "num_key_value_heads", "heads": "num_attention_heads", "neurons": "intermediate_size"}
_NAMES = ("model", "made_by")
_ACCEPTED = (*_INDICES, *_LAYERS, "pad_to", "compensation", *_NAMES)
_SHARED = ("hidden_size", "vocab_size", "head_dim", "rms_norm_eps")


def check_record(record: Mapping[str, Any], original: Mapping[str, Any], where: str) -> None:
    """InputError, naming `where`, key and value, unless `record` is a pruning of the model that `original` configures.

    Lists of indices below the original's sizes, none twice; `kv_groups`, `heads` and `neurons` as objects from a block
    index to such a list; `compensation` as one from a bias to digests; `pad_to` null or a whole number from 1. A key
    that is absent removes nothing. The configuration has been checked (`Family.check`).
    """
    blocks = original["num_hidden_layers"]
    for key in record:
        if key not in _ACCEPTED:
            raise InputError(f"{where}: unknown key {key!r}; accepted: {', '.join(_ACCEPTED)}")
    for key in _INDICES:
        _check_indices(record.get(key, []), blocks, f"{where}: {key}")
    for key, size in _LAYERS.items():
        layers = record.get(key, {})
        if not isinstance(layers, Mapping):
            raise InputError(f"{where}: {key} is {layers!r}; an object from block index to a list is expected")
        for layer, gone in layers.items():
            if not (layer.isascii() and layer.isdigit() and len(layer) < 10 and int(layer) < blocks):
                raise InputError(f"{where}: {key} names block {layer!r}; an index from 0 to {blocks - 1} is expected")
            _check_indices(gone, original[size], f"{where}: {key} of block {layer}")
    pad_to = record.get("pad_to")
    if pad_to is not None and not (is_int(pad_to) and pad_to >= 1):
        raise InputError(f"{where}: pad_to is {pad_to!r}; null or a whole number from 1 is expected")
    added = record.get("compensation", {})
    if not isinstance(added, Mapping) or not all(isinstance(digests, list) for digests in added.values()):
        raise InputError(f"{where}: compensation is {added!r}; an object from a bias to digests is expected")
    for key in _NAMES:
        if not isinstance(record.get(key, ""), str):
            raise InputError(f"{where}: {key} is {record[key]!r}; a string is expected")


def check_original(original: Mapping[str, Any], present: Mapping[str, Any], where: str) -> None:
    """InputError when the original configuration contradicts the present one, which the weights have confirmed, in a
    size that no pruning changes."""
    for key in _SHARED:
        if original[key] != present[key]:
            raise InputError(f"{where}: {key} is {original[key]!r}; the checkpoint's weights and config.json have"
                             f" {present[key]!r}")  # fmt: skip


def removed_blocks(record: Mapping[str, Any]) -> set[int]:
    """Original indices of the blocks of which a pruning leaves nothing."""
    halves = set(record.get("mha", ())) & set(record.get("ffn", ()))
    return set(record.get("blocks", ())) | halves


def _check_indices(values: object, size: int, what: str) -> None:
    if not isinstance(values, list):
        raise InputError(f"{what} is {values!r}; a list of indices is expected")
    for value in values:
        if not is_int(value) or not 0 <= value < size:
            raise InputError(f"{what} holds {value!r}; indices from 0 to {size - 1} are expected")
    if len(set(values)) != len(values):
        twice = next(value for value in values if values.count(value) > 1)
        raise InputError(f"{what} holds {twice} twice; each index is expected once")
