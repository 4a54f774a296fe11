"""Width pruning: blocks keep their place and lose KV groups and FFN neurons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyprune.checks import is_int
from pyprune.errors import InputError
from pyprune.models import as_decoder
from pyprune.models.decoder import Block, Decoder
from pyprune.models.original_sizes import OriginalSizes
from pyprune.models.pruning import Pruning, original_name, recorded
from pyprune.pruning import flap, head_gate, llm_pruner, magnitude_sp, wanda_sp
from pyprune.pruning.apply import kept, pad
from pyprune.pruning.budget import BlockCosts, count_for_ratio, unit_parameters
from pyprune.pruning.depth import protected_blocks
from pyprune.pruning.importance import Importance
from pyprune.pruning.method import Chosen, Method, Progress, Task
from pyprune.runtime.inputs import check_ids

METHODS: dict[str, Method] = {
    "wanda-sp": wanda_sp.METHOD,
    "flap": flap.METHOD,
    "llm-pruner": llm_pruner.METHOD,
    "magnitude-sp": magnitude_sp.METHOD,
    "head-gate": head_gate.METHOD,
}
UNITS = ("both", "heads", "neurons")


def width(
    model: Any,
    method: str = "wanda-sp",
    *,
    ratio: float | None = None,
    target_parameters: int | None = None,
    calibration: Tensor | None = None,
    align: int | None = None,
    variant: str | Iterable[str] | None = None,
    units: str = "both",
    protect: Iterable[int] | str | None = None,
    remove_groups: int | None = None,
    progress: Progress | None = None,
) -> Pruning:
    """The pruning that narrows the blocks of a model, in the original model's indices.

    `model`: a Decoder, a loaded PreTrainedModel (left unchanged), or whatever `pyprune.load` takes. `method`: one of
    METHODS; each file of that name states its formulas and source. Exactly one of `ratio` (share of the model's
    parameters; the target is then the parameter count of the depth-pruned model of that ratio) and `target_parameters`;
    either is met within 0.5 %. `calibration [samples, seq_len]`: token ids, integers; methods that use none take none.
    `align`: FFN widths that stay are multiples of it, the best neurons up to there. `variant`: words such as
    "WIFV,AL-AM" that choose among the method's options (`Method.options`). `units`: "both", or only "heads" (whole KV
    groups) or "neurons". `protect`: blocks that stay whole, as in `depth` (None: the method's own choice, "" for none).
    `remove_groups`: KV groups that go in all, for the variants of flap and head-gate that rank them apart. `progress`:
    called with steps done and steps in all.
    InputError for anything else, a bad calibration, or a target that no selection meets.
    """
    decoder = as_decoder(model)
    options = {"align": align, "variant": variant, "units": units, "protect": protect, "remove_groups": remove_groups}
    task = _task(decoder, method, ratio, target_parameters, **options)
    if calibration is not None or METHODS[method].calibrated:
        task = replace(task, calibration=_checked(calibration, decoder, METHODS[method].least_tokens))
    if progress is not None:
        task = replace(task, progress=progress)
    with torch.no_grad():
        chosen = METHODS[method].choose(task)
    return _pruning(decoder, method, task, chosen)


def rehearsal(
    decoder: Decoder,
    method: str = "wanda-sp",
    *,
    ratio: float | None = None,
    target_parameters: int | None = None,
    **options: Any,
) -> Pruning:
    """A pruning of the same kind and size as `width` will make, of any groups and neurons: what can be checked before
    the slow part. `options` and errors as there."""
    task = _task(decoder, method, ratio, target_parameters, **options)
    groups, neurons = {}, {}
    for block in task.decoder.blocks:
        if block.mha is not None:
            groups[block.index] = torch.linspace(0, 1, block.mha.kv_heads, dtype=torch.float64)
        if block.ffn is not None:
            neurons[block.index] = torch.linspace(0, 1, block.ffn.width, dtype=torch.float64)
    kept_ = METHODS[method].keep(task, Importance(groups, neurons))
    biases = {}
    if METHODS[method].adds_biases(task.words):
        one = torch.ones(decoder.hidden_size)
        biases = {f"blocks.{cost.index}.{name}.bias": one for cost in task.costs for name in ("o", "down")}
    return _pruning(decoder, method, task, Chosen(kept_, biases))


def chosen_words(method: str, variant: str | Iterable[str] | None) -> frozenset[str]:
    """One word of each of the method's options: those that `variant` names, else the defaults.

    `variant`: words, or one string with commas between. InputError for a word that is none of them and for two of one
    option.
    """
    if method not in METHODS:
        raise InputError(f"width: method {method!r}: {', '.join(METHODS)} is expected")
    options = METHODS[method].options
    words = [word.strip() for word in (variant.split(",") if isinstance(variant, str) else variant or ())]
    for word in words:
        if not any(word in option for option in options):
            accepted = "; ".join(" or ".join(option) for option in options)
            raise InputError(f"width: variant {word!r}: of {method} are accepted {accepted}")
    chosen = set()
    for option in options:
        named = [word for word in option if word in words]
        if len(named) > 1:
            raise InputError(f"width: variant {', '.join(named)}: one of them is expected")
        chosen.add(named[0] if named else option[0])
    return frozenset(chosen)


def _task(
    decoder: Decoder,
    method: str,
    ratio: float | None,
    target_parameters: int | None,
    *,
    align: int | None = None,
    variant: str | Iterable[str] | None = None,
    units: str = "both",
    protect: Iterable[int] | str | None = None,
    remove_groups: int | None = None,
) -> Task:
    words = chosen_words(method, variant)
    if (ratio is None) == (target_parameters is None):
        raise InputError(
            f"width: ratio {ratio!r} and target_parameters {target_parameters!r}: exactly one of them is expected"
        )
    if units not in UNITS:
        raise InputError(f"width: units {units!r}: {', '.join(UNITS)} is expected")
    if remove_groups is not None:
        if not is_int(remove_groups) or remove_groups < 0:
            raise InputError(f"width: remove_groups {remove_groups!r}: a whole number from 0 is expected")
        if not METHODS[method].removes_groups(words) or units != "both":
            raise InputError(
                f"width: remove_groups {remove_groups}: belongs to flap's AL-MM and UL-MM and to head-gate's global,"
                " with both units"
            )
    # Padding is no part of the model's size, and no candidate for removal.
    bare = pad(decoder, 1)
    indices = [block.index for block in bare.blocks]
    whole = protected_blocks(METHODS[method].protect(len(indices)) if protect is None else protect, indices)
    costs = tuple(BlockCosts.of(block) for block in bare.blocks if block.index not in whole)
    if not costs:
        raise InputError(f"width: protect {protect!r}: leaves no block to narrow of {len(indices)}")
    added = 0
    if METHODS[method].adds_biases(words):
        added = sum(_biases_to_come(block, units) for block in bare.blocks if block.index not in whole)
    target = _target(bare, ratio) if ratio is not None else target_parameters
    return Task(bare, target, costs, words, None, align, units, remove_groups, added)  # type: ignore[arg-type]


def _target(decoder: Decoder, ratio: float) -> int:
    """Parameters of the depth-pruned model of that ratio, its blocks taken in order where they differ."""
    sizes = list(unit_parameters(decoder, "block").values())[:-1]
    return decoder.parameters() - sum(sizes[: count_for_ratio(ratio, decoder.parameters(), sizes)])


def _biases_to_come(block: Block, units: str) -> int:
    linears = []
    if block.mha is not None and units != "neurons":
        linears.append(block.mha.o)
    if block.ffn is not None and units != "heads":
        linears.append(block.ffn.down)
    return sum(linear.weight.shape[0] for linear in linears if linear.bias is None)


def _pruning(decoder: Decoder, method: str, task: Task, chosen: Chosen) -> Pruning:
    """What was chosen, in the original model's indices."""
    original, gone = OriginalSizes.of(task.decoder), recorded(task.decoder)
    defaults = {option[0] for option in METHODS[method].options}
    words = ",".join(word for option in METHODS[method].options for word in option if word in task.words - defaults)
    return Pruning(
        model=original_name(decoder),
        kv_groups=_others(original.kv_groups, gone.kv_groups, chosen.kept.groups),
        neurons=_others(original.width, gone.neurons, chosen.kept.neurons),
        compensation=chosen.biases,  # type: ignore[arg-type]  # Pruning makes a Compensation of it
        made_by=f"width {method} {words}".strip(),
    )


def _others(size: int, gone: Mapping[int, Sequence[int]], stay: Mapping[int, Sequence[int]]) -> dict[int, list[int]]:
    """Block index -> the original indices of all that is there but not among the places that stay."""
    found = {}
    for index, places in stay.items():
        present, staying = kept(size, gone.get(index, ())), set(places)
        found[index] = [unit for place, unit in enumerate(present) if place not in staying]
    return found


def _checked(calibration: Tensor | None, decoder: Decoder, least: int) -> Tensor:
    if not isinstance(calibration, Tensor):
        shown = "none" if calibration is None else type(calibration).__name__
        raise InputError(f"width: calibration {shown} given; token ids, integers [samples, seq_len], are accepted")
    try:
        check_ids(calibration, decoder.vocab_size)
    except InputError as error:
        raise InputError(f"width: calibration: {error}") from None
    tokens = calibration.shape[1]
    if not least <= tokens <= decoder.max_positions:
        raise InputError(
            f"width: calibration of {tokens} token{'s' if tokens > 1 else ''} a sample; {least} to"
            f" {decoder.max_positions} are accepted"
        )
    return calibration
