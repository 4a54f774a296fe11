"""OptiPFair: `prune_model(model, pruning_type="DEPTH", layer_indices=...)` takes layers that a ranking names."""

from __future__ import annotations

from pyprune.errors import InputError
from pyprune.models.pruning import Pruning
from pyprune.scoring.scores import Scores


def layer_importance(scores: Scores) -> dict[int, float]:
    """Scores of blocks in the form of OptiPFair's `analyze_layer_importance`: layer -> importance, the lowest the most
    removable. InputError for scores of anything else."""
    if scores.unit != "block":
        raise InputError(f"optipfair: scores of unit {scores.unit!r}; scores of blocks are expected")
    return {index: value for (_, index), value in sorted(zip(scores.units, scores.values, strict=True))}


def removed_layers(pruning: Pruning) -> list[int]:
    """The `layer_indices` of OptiPFair's depth pruning; InputError for a pruning of anything but whole blocks."""
    blocks, mha, ffn = pruning.skip_sets()
    if mha or ffn:
        raise InputError(f"optipfair: mha {sorted(mha)} and ffn {sorted(ffn)}; whole blocks are expected")
    return sorted(blocks)
