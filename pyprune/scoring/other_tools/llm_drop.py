"""LLM-Drop: a model's `config.json` names the attention and MLP sublayers that do not run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyprune.checks import is_whole
from pyprune.errors import InputError
from pyprune.models.pruning import Pruning

_LISTS = {"mha": "drop_attn_list", "ffn": "drop_mlp_list"}


def llm_drop_lists(pruning: Pruning) -> dict[str, list[int]]:
    """`drop_attn_list` and `drop_mlp_list` for a configuration; a whole block is in both. InputError for a pruning that
    narrows a sublayer."""
    blocks, mha, ffn = pruning.skip_sets()
    return {"drop_attn_list": sorted(blocks | mha), "drop_mlp_list": sorted(blocks | ffn)}


def pruning_of_llm_drop(config: Mapping[str, Any]) -> Pruning:
    """The pruning of a configuration's lists, which hold indices, or one boolean for each block; InputError for lists
    of anything else."""
    mha, ffn = (_indices(config.get(_LISTS[kind]) or [], _LISTS[kind]) for kind in ("mha", "ffn"))
    return Pruning(mha=mha, ffn=ffn, made_by="LLM-Drop")


def _indices(values: Any, name: str) -> tuple[int, ...]:
    if isinstance(values, list) and values and all(isinstance(value, bool) for value in values):
        return tuple(index for index, dropped in enumerate(values) if dropped)
    if not isinstance(values, list) or not all(is_whole(value) for value in values):
        raise InputError(f"{name}: {values!r}; block indices, or a boolean for each block, are expected")
    return tuple(sorted(values))
