"""Puzzletron (NVIDIA Model-Optimizer): a replacement library as candidates.

`replacement_library.json` is a list of replacements: `parent_layer_indices`, the block; `child_block_configs`, its
attention and FFN, each left out (`no_op`) or of some KV heads or width; `weight_paths`, safetensors files of their
weights under Hugging Face's names. Puzzletron scores each by a forward pass of the whole model.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pyprune.errors import InputError
from pyprune.files import read_json
from pyprune.models.blocks import FFN, MHA, Block, Linear
from pyprune.models.decoder import Decoder

_LAYER = re.compile(r"(?:.*\.)?layers\.(\d+)\.(.+)")


def puzzletron_candidates(decoder: Decoder, library: str | os.PathLike[str]) -> dict[str, dict[tuple[int, str], Any]]:
    """The candidates of a replacement library, for `pyprune.score`: "block 3, 0" -> what stands in block 3 in its first
    replacement. Parts equal to the model's own in size, for which the library holds no weights, are left as they are;
    replacements that change nothing are left out.

    decoder: the parent model, of one of our families; weights are put in its dtype and on its device. Paths that are
    not absolute are read beside the library. InputError for a library of another form, a replacement of several blocks,
    a mixture of experts, a linear or state-space sublayer, or weights that are missing.
    """
    path = Path(library)
    entries = read_json(path)
    if isinstance(entries, dict):
        entries = entries.get("entries")
    if not isinstance(entries, list):
        raise InputError(f"{path}: a list of replacements is expected")
    blocks = {block.index: block for block in decoder.blocks}
    numbers: dict[int, int] = {}
    candidates = {}
    for entry in entries:
        index = _single_block(entry, path)
        if index not in blocks:
            raise InputError(f"{path}: replaces block {index}, which {decoder.name} has not")
        number = numbers[index] = numbers.get(index, -1) + 1
        changes = _changes(entry, blocks[index], decoder, path)
        if changes:
            candidates[f"block {index}, {number}"] = changes
    return candidates


def _single_block(entry: Any, path: Path) -> int:
    parents = entry.get("parent_layer_indices") if isinstance(entry, Mapping) else None
    children = entry.get("child_block_configs") if isinstance(entry, Mapping) else None
    if not isinstance(parents, list) or not isinstance(children, list) or len(parents) != 1 or len(children) != 1:
        raise InputError(f"{path}: a replacement of {parents} by {children}; of one block by one is expected")
    return int(parents[0])


def _changes(entry: Mapping[str, Any], block: Block, decoder: Decoder, path: Path) -> dict[tuple[int, str], Any]:
    config, weights = entry["child_block_configs"][0], _Weights(entry.get("weight_paths") or [], path, decoder)
    if not isinstance(config, Mapping) or not {"attention", "ffn"} <= config.keys():
        keys = ", ".join(map(str, config)) if isinstance(config, Mapping) else type(config).__name__
        raise InputError(
            f"{path}: the configuration of block {block.index} has {keys}; attention and ffn are expected (a library of"
            " subblock_configs is not read)"
        )
    changes: dict[tuple[int, str], Any] = {}
    for kind, name, own in (("mha", "attention", block.mha), ("ffn", "ffn", block.ffn)):
        part = config.get(name) or {}
        refused = [key for key in ("replace_with_linear", "moe", "mamba", "llama4") if part.get(key)]
        if refused or config.get("parallel_blocks"):
            reason = ", ".join(refused) or "parallel blocks"
            raise InputError(f"{path}: {name} of block {block.index} has {reason}, which is not read")
        if part.get("no_op"):
            if own is not None:
                changes[block.index, kind] = None
        elif own is None:
            raise InputError(f"{path}: {name} of block {block.index}, which {decoder.name} lacks")
        elif isinstance(own, FFN):
            ffn = _ffn(weights, own, block.index)
            _require_size(ffn.width, part.get("intermediate_size"), f"intermediate_size of block {block.index}", path)
            if ffn is not own:
                changes[block.index, kind] = ffn
        else:
            mha = _mha(weights, own, block.index)
            what = f"num_key_value_heads of block {block.index}"
            _require_size(mha.kv_heads, part.get("num_key_value_heads"), what, path)
            if mha is not own:
                changes[block.index, kind] = mha
    return changes


def _ffn(weights: _Weights, own: FFN, index: int) -> FFN:
    gate, up, down = (weights.linear(index, f"mlp.{name}_proj") for name in ("gate", "up", "down"))
    norm = weights.get(index, "post_attention_layernorm.weight")
    if gate is None or up is None or down is None:
        return own if norm is None else replace(own, norm=norm)
    return FFN(own.norm if norm is None else norm, gate, up, down)


def _mha(weights: _Weights, own: MHA, index: int) -> MHA:
    q, k, v, o = (weights.linear(index, f"self_attn.{name}_proj") for name in "qkvo")
    norm = weights.get(index, "input_layernorm.weight")
    if q is None or k is None or v is None or o is None:
        return own if norm is None else replace(own, norm=norm)
    norms: dict[str, Any] = {name: weights.get(index, f"self_attn.{name}.weight") for name in ("q_norm", "k_norm")}
    return replace(
        own,
        norm=own.norm if norm is None else norm,
        q=q,
        k=k,
        v=v,
        o=o,
        heads=q.weight.shape[0] // own.head_dim,
        kv_heads=k.weight.shape[0] // own.head_dim,
        **{name: value for name, value in norms.items() if value is not None},
    )


def _require_size(size: int, stated: Any, what: str, path: Path) -> None:
    if stated is not None and size != stated:
        raise InputError(
            f"{path}: {what} is {stated}, but weights of {size} were found; weights of that size are expected"
        )


class _Weights:
    """The tensors of a replacement's files by block and name."""

    def __init__(self, paths: list[str], library: Path, decoder: Decoder) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        self._tensors: dict[tuple[int, str], Tensor] = {}
        for name in paths:
            path = library.parent / name  # an absolute name stays as it is
            try:
                tensors = load_file(path)
            except (OSError, SafetensorError) as error:
                raise InputError(f"{path}: {' '.join(str(error).split())}; a safetensors file is expected") from None
            for full_name, tensor in tensors.items():
                match = _LAYER.fullmatch(full_name)
                if match is not None:
                    self._tensors[int(match[1]), match[2]] = tensor.to(decoder.device, decoder.dtype)

    def get(self, index: int, name: str) -> Tensor | None:
        """A tensor; None where the files have it not."""
        return self._tensors.get((index, name))

    def linear(self, index: int, name: str) -> Linear | None:
        """A projection; None where the files have it not."""
        weight = self.get(index, f"{name}.weight")
        return None if weight is None else Linear(weight, self.get(index, f"{name}.bias"))
