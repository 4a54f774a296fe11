"""A pruning in the formats of other tools: mergekit, LLM-Drop, OptiPFair, ModelOpt, and plain JSON.

Only facts of their formats stand here, read from their sources and documentation; none of them is needed to write one.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace

from pyprune.errors import InputError
from pyprune.files import write_text
from pyprune.models.compensation import FILE
from pyprune.models.pruning import FORMAT, Pruning


def export(pruning: Pruning, to: str, *, blocks: int | None = None, model: str | None = None) -> str:
    """The text of a file in which another tool takes the pruning; `write_export` writes it.

    to: "mergekit", "llm-drop", "optipfair", "modelopt" or "json". blocks: how many the original model has, and model:
    its name as the tool is to know it; mergekit needs both. InputError for a pruning that names blocks beyond those,
    that removes nothing, or that the tool cannot express, with the reason; in "json" what is added to biases, of which
    the values have a file of their own.
    """
    _check(pruning, to, blocks)
    if to == "json" and pruning.compensation:
        bias = next(iter(pruning.compensation))
        raise InputError(
            f"export to json: the values added to {bias} are not part of the text; a file to write (--out FILE) is"
            f" expected, beside which they become {FILE}"
        )
    return FORMATS[to](pruning, blocks, model or pruning.model)


def write_export(
    pruning: Pruning, to: str, path: str | os.PathLike[str], *, blocks: int | None = None, model: str | None = None
) -> None:
    """Write the file in which another tool takes the pruning, whole or not at all; arguments and errors as in `export`.

    With "json" what is added to biases becomes `compensation.safetensors` beside it; InputError where the values are
    not known.
    """
    if to == "json":
        _check(pruning, to, blocks)
        replace(pruning, model=pruning.model or model or "").to_json(path)
    else:
        write_text(path, export(pruning, to, blocks=blocks, model=model))


def mergekit(pruning: Pruning, blocks: int | None, model: str) -> str:
    """A mergekit configuration (YAML): the passthrough method stacks slices of layers, `layer_range` half-open from 0.

    Each run of kept blocks is a slice. Source: arcee-ai/mergekit, README and `mergekit/config.py` (MergeConfiguration,
    InputSliceDefinition).
    """
    _require_whole_blocks(pruning, "mergekit", "its slices are runs of whole layers")
    if blocks is None or not model:
        raise InputError(
            "export to mergekit: its slices name the model and all kept layers; model and blocks are expected"
        )
    lines = ["merge_method: passthrough", "slices:"]
    for first, last in _runs([block for block in range(blocks) if block not in pruning.blocks]):
        # A JSON string is a YAML string too, whatever characters the name has.
        lines += ["- sources:", f"  - model: {json.dumps(model, ensure_ascii=False)}"]
        lines += [f"    layer_range: [{first}, {last + 1}]"]
    return "\n".join(lines) + "\n"


def llm_drop(pruning: Pruning, blocks: int | None, model: str) -> str:
    """The keys that LLM-Drop's models read from `config.json`: the layers without attention and those without an MLP.

    A dropped block is in both lists; indices from 0. Source: CASE-Lab-UMD/LLM-Drop, README and
    `configuration_dropped_llama.py`.
    """
    _refuse_widths(pruning, "llm-drop", "it drops whole attention and MLP sublayers")
    return _json(
        {
            "drop_attn_list": sorted({*pruning.blocks, *pruning.mha}),
            "drop_mlp_list": sorted({*pruning.blocks, *pruning.ffn}),
        }
    )


def optipfair(pruning: Pruning, blocks: int | None, model: str) -> str:
    """Arguments of OptiPFair's `prune_model(model, **arguments)`: depth pruning of these layers, indices from 0.

    Source: peremartra/optipfair, `optipfair/pruning/depth.py` (validate_layer_removal_params).
    """
    _require_whole_blocks(pruning, "optipfair", "its depth pruning removes whole layers")
    return _json({"pruning_type": "DEPTH", "layer_indices": list(pruning.blocks)})


def modelopt(pruning: Pruning, blocks: int | None, model: str) -> str:
    """Arguments of Model Optimizer's `drop_mcore_language_model_layers(model, **arguments)`: layers counted **from 1**.

    Source: NVIDIA/Model-Optimizer, `modelopt.torch.prune.plugins.mcore_minitron` (its docstring and its check).
    """
    _require_whole_blocks(pruning, "modelopt", "it drops whole layers")
    return _json({"layers_to_drop": [block + 1 for block in pruning.blocks]})


def plain_json(pruning: Pruning, blocks: int | None, model: str) -> str:
    """pyprune's own JSON form; a model's name is filled in where the pruning has none."""
    return _json({"format": FORMAT, **pruning.to_dict(), "model": pruning.model or model})


FORMATS: dict[str, Callable[[Pruning, int | None, str], str]] = {
    "mergekit": mergekit,
    "llm-drop": llm_drop,
    "optipfair": optipfair,
    "modelopt": modelopt,
    "json": plain_json,
}


def _check(pruning: Pruning, to: str, blocks: int | None) -> None:
    if to not in FORMATS:
        raise InputError(f"export to {to!r}: {', '.join(FORMATS)} are accepted")
    if blocks is not None:
        _check_blocks(pruning, blocks)


def _check_blocks(pruning: Pruning, blocks: int) -> None:
    narrowed = {*pruning.kv_groups, *pruning.heads, *pruning.neurons, *pruning.compensation.blocks()}
    named = {*pruning.blocks, *pruning.mha, *pruning.ffn, *narrowed}
    beyond = sorted(index for index in named if index >= blocks)
    if beyond:
        raise InputError(f"pruning: names block {beyond[0]}; 0 to {blocks - 1} are accepted")
    if len(pruning.blocks) >= blocks:
        raise InputError(f"pruning: all {blocks} blocks are removed; at least one must stay")


def _require_whole_blocks(pruning: Pruning, to: str, reason: str) -> None:
    for sublayer in ("mha", "ffn"):
        if getattr(pruning, sublayer):
            raise InputError(
                f"export to {to}: {sublayer} {list(getattr(pruning, sublayer))} cannot be expressed; {reason}"
            )
    _refuse_widths(pruning, to, reason)


def _refuse_widths(pruning: Pruning, to: str, reason: str) -> None:
    for name in ("kv_groups", "heads", "neurons"):
        if getattr(pruning, name):
            layer = next(iter(getattr(pruning, name)))
            raise InputError(f"export to {to}: {name} of block {layer} cannot be expressed; {reason}")
    for bias in pruning.compensation:
        raise InputError(f"export to {to}: what is added to {bias} cannot be expressed; {reason}")
    if pruning.pad_to not in (None, 1):
        raise InputError(f"export to {to}: pad_to {pruning.pad_to} cannot be expressed; {reason}")
    if not (pruning.blocks or pruning.mha or pruning.ffn):
        raise InputError(f"export to {to}: the pruning removes no block or sublayer; there is nothing to write")


def _runs(indices: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of each run of consecutive numbers."""
    starts = [indices[0], *(after for before, after in itertools.pairwise(indices) if after != before + 1)]
    ends = [*(before for before, after in itertools.pairwise(indices) if after != before + 1), indices[-1]]
    return list(zip(starts, ends, strict=True))


def _json(data: object) -> str:
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"
