"""mergekit: a passthrough merge of layer ranges is a depth pruning. PruneMe has its ranges written by hand."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from pyprune.checks import is_whole
from pyprune.errors import InputError
from pyprune.models.pruning import Pruning


def mergekit_config(pruning: Pruning, model: str, blocks: int, dtype: str = "bfloat16") -> dict[str, Any]:
    """The configuration, for `yaml.safe_dump`, of the passthrough merge that leaves out a pruning's blocks, of a model
    of so many; a range ends before its second number. InputError for anything but whole blocks."""
    removed, mha, ffn = pruning.skip_sets()
    if mha or ffn:
        raise InputError(f"mergekit: mha {sorted(mha)} and ffn {sorted(ffn)} of the pruning; whole blocks are expected")
    if removed and max(removed) >= blocks:
        raise InputError(f"mergekit: block {max(removed)} of a model of {blocks}; 0 to {blocks - 1} are accepted")
    kept = [index for index in range(blocks) if index not in removed]
    if not kept:
        raise InputError(f"mergekit: all {blocks} blocks are removed; at least one must stay")
    ends = [place for place, (a, b) in enumerate(itertools.pairwise(kept), start=1) if b != a + 1]
    ranges = [[kept[a], kept[b - 1] + 1] for a, b in itertools.pairwise([0, *ends, len(kept)])]
    slices = [{"sources": [{"model": model, "layer_range": layer_range}]} for layer_range in ranges]
    return {"slices": slices, "merge_method": "passthrough", "dtype": dtype}


def pruning_of_mergekit(config: Mapping[str, Any], blocks: int) -> Pruning:
    """The pruning that a passthrough merge of one model of so many blocks is; InputError for a merge that is not one:
    several models, another method, a layer twice or out of order."""
    if config.get("merge_method") != "passthrough":
        raise InputError(f"mergekit: merge_method {config.get('merge_method')!r}; passthrough is expected")
    kept: list[int] = []
    models = set()
    for part in config.get("slices") or ():
        sources = part.get("sources") or []
        if len(sources) != 1:
            raise InputError(f"mergekit: {len(sources)} sources in a slice; one is expected")
        models.add(str(sources[0].get("model")))
        layer_range = sources[0].get("layer_range")
        if not isinstance(layer_range, list) or len(layer_range) != 2 or not all(map(is_whole, layer_range)):
            raise InputError(f"mergekit: layer_range {layer_range!r}; two whole numbers are expected")
        kept += range(*layer_range)
    if len(models) != 1 or kept != sorted(set(kept)) or not kept or kept[0] < 0 or kept[-1] >= blocks:
        raise InputError(f"mergekit: layers {kept} of models {sorted(models)}; one model's, each once, are expected")
    return Pruning(blocks=tuple(sorted(set(range(blocks)) - set(kept))), made_by="mergekit")
