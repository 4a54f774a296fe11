"""Width pruning: all blocks stay and lose KV groups and FFN neurons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyprune.checks import is_int
from pyprune.errors import InputError
from pyprune.models import as_decoder
from pyprune.models.compensation import Compensation
from pyprune.models.decoder import Block, Decoder
from pyprune.models.original_sizes import OriginalSizes
from pyprune.models.pruning import Pruning, original_name, recorded
from pyprune.progress import Progress
from pyprune.pruning import flap, head_gate, llm_pruner, magnitude_sp, wanda_sp
from pyprune.pruning.apply import kept, pad
from pyprune.pruning.budget import BlockCosts, count_for_ratio, unit_parameters
from pyprune.pruning.depth import protected_blocks
from pyprune.pruning.importance import Importance
from pyprune.pruning.method import Method, Selection, Task
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
    `align`: FFN widths that stay are multiples of it, the best neurons up to there. `variant`: alternatives such
    as "WIFV,AL-AM" of the method's options (`Method.options`). `units`: "both", or only "heads" (whole KV
    groups) or "neurons". `protect`: blocks that stay whole, as in `depth` (None: the method's own choice, "" for none).
    `remove_groups`: KV groups that go in all, for the variants of flap and head-gate that rank them apart. `progress`:
    called with steps done and steps in all.
    InputError for anything else, a bad calibration, or a target that no selection meets.
    """
    decoder = as_decoder(model)
    task = _task(
        decoder, method, ratio, target_parameters,
        align=align, variant=variant, units=units, protect=protect, remove_groups=remove_groups,
    )  # fmt: skip
    if calibration is not None or METHODS[method].calibrated:
        task = replace(task, calibration=_checked(calibration, decoder, METHODS[method].least_tokens))
    if progress is not None:
        task = replace(task, progress=progress)
    with torch.no_grad():
        selection = METHODS[method].select(task)
    return _pruning(decoder, method, task, selection)


def dry_run(
    decoder: Decoder,
    method: str = "wanda-sp",
    *,
    ratio: float | None = None,
    target_parameters: int | None = None,
    **options: Any,
) -> Pruning:
    """A pruning of the size that `width` will make, with arbitrary groups and neurons: an amount that cannot be had, or
    a model that cannot be saved, shows before the slow part. `options` and errors as in `width`."""
    task = _task(decoder, method, ratio, target_parameters, **options)
    groups, neurons = {}, {}
    for block in task.decoder.blocks:
        if block.mha is not None:
            groups[block.index] = torch.linspace(0, 1, block.mha.kv_heads, dtype=torch.float64)
        if block.ffn is not None:
            neurons[block.index] = torch.linspace(0, 1, block.ffn.width, dtype=torch.float64)
    kept_units = METHODS[method].keep(task, Importance(groups, neurons))
    biases = {}
    if METHODS[method].adds_biases(task.options):
        bias = torch.ones(decoder.hidden_size)
        biases = {f"blocks.{cost.index}.{name}.bias": bias for cost in task.costs for name in ("o", "down")}
    return _pruning(decoder, method, task, Selection(kept_units, biases))


def variant_options(method: str, variant: str | Iterable[str] | None) -> frozenset[str]:
    """One alternative of each of the method's options: those that `variant` names, else the defaults.

    `variant`: alternatives, or one string with commas between. InputError for any other word and for two alternatives
    of one option.
    """
    if method not in METHODS:
        raise InputError(f"width: method {method!r}: {', '.join(METHODS)} is expected")
    options = METHODS[method].options
    names = [name.strip() for name in (variant.split(",") if isinstance(variant, str) else variant or ())]
    for name in names:
        if not any(name in alternatives for alternatives in options):
            accepted = "; ".join(" or ".join(alternatives) for alternatives in options)
            raise InputError(f"width: variant {name!r}: of {method} are accepted {accepted}")
    chosen = set()
    for alternatives in options:
        named = [alternative for alternative in alternatives if alternative in names]
        if len(named) > 1:
            raise InputError(f"width: variant {', '.join(named)}: one of them is expected")
        chosen.add(named[0] if named else alternatives[0])
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
    options = variant_options(method, variant)
    if (ratio is None) == (target_parameters is None):
        raise InputError(
            f"width: ratio {ratio!r} and target_parameters {target_parameters!r}: exactly one of them is expected"
        )
    if units not in UNITS:
        raise InputError(f"width: units {units!r}: {', '.join(UNITS)} is expected")
    if remove_groups is not None:
        if not is_int(remove_groups) or remove_groups < 0:
            raise InputError(f"width: remove_groups {remove_groups!r}: a whole number from 0 is expected")
        if not METHODS[method].removes_groups(options) or units != "both":
            raise InputError(
                f"width: remove_groups {remove_groups}: belongs to flap's AL-MM and UL-MM and to head-gate's global,"
                " with both units"
            )
    # Padding is no part of the model's size, and no candidate for removal.
    bare = pad(decoder, 1)
    indices = [block.index for block in bare.blocks]
    protected = protected_blocks(METHODS[method].protect(len(indices)) if protect is None else protect, indices)
    costs = tuple(BlockCosts.of(block) for block in bare.blocks if block.index not in protected)
    if not costs:
        raise InputError(f"width: protect {protect!r}: leaves no block to narrow of {len(indices)}")
    added = 0
    if METHODS[method].adds_biases(options):
        added = sum(_added_biases(block, units) for block in bare.blocks if block.index not in protected)
    target = _target(bare, ratio) if ratio is not None else target_parameters
    return Task(bare, target, costs, options, None, align, units, remove_groups, added)  # type: ignore[arg-type]  # one is given, see above


def _target(decoder: Decoder, ratio: float) -> int:
    """Parameters of the depth-pruned model of that ratio, its blocks taken in order where they differ."""
    sizes = list(unit_parameters(decoder, "block").values())[:-1]
    return decoder.parameters() - sum(sizes[: count_for_ratio(ratio, decoder.parameters(), sizes)])


def _added_biases(block: Block, units: str) -> int:
    """Parameters of the biases that o and down of a block would get."""
    linears = []
    if block.mha is not None and units != "neurons":
        linears.append(block.mha.o)
    if block.ffn is not None and units != "heads":
        linears.append(block.ffn.down)
    return sum(linear.weight.shape[0] for linear in linears if linear.bias is None)


def _pruning(decoder: Decoder, method: str, task: Task, selection: Selection) -> Pruning:
    """The pruning that leaves a selection, in the original model's indices."""
    original, earlier = OriginalSizes.of(task.decoder), recorded(task.decoder)
    defaults = {option[0] for option in METHODS[method].options}
    variant = ",".join(name for option in METHODS[method].options for name in option if name in task.options - defaults)
    return Pruning(
        model=original_name(decoder),
        kv_groups=_removed_indices(original.kv_groups, earlier.kv_groups, selection.kept.groups),
        neurons=_removed_indices(original.width, earlier.neurons, selection.kept.neurons),
        compensation=Compensation.of(selection.biases),
        made_by=f"width {method} {variant}".strip(),
    )


def _removed_indices(
    size: int, earlier: Mapping[int, Sequence[int]], kept_positions: Mapping[int, Sequence[int]]
) -> dict[int, tuple[int, ...]]:
    """Block index -> the original indices of the present units that are not kept.

    `size`: units of the original block; `earlier`: original indices that it lost before; `kept_positions`: among those
    that are present.
    """
    removed = {}
    for index, positions in kept_positions.items():
        present, kept_set = kept(size, earlier.get(index, ())), set(positions)
        removed[index] = tuple(unit for position, unit in enumerate(present) if position not in kept_set)
    return removed


def _checked(calibration: Tensor | None, decoder: Decoder, min_tokens: int) -> Tensor:
    if not isinstance(calibration, Tensor):
        shown = "none" if calibration is None else type(calibration).__name__
        raise InputError(f"width: calibration {shown} given; token ids, integers [samples, seq_len], are accepted")
    try:
        check_ids(calibration, decoder.vocab_size)
    except InputError as error:
        raise InputError(f"width: calibration: {error}") from None
    tokens = calibration.shape[1]
    if not min_tokens <= tokens <= decoder.max_positions:
        raise InputError(
            f"width: calibration of {tokens} token{'s' if tokens > 1 else ''} a sample; {min_tokens} to"
            f" {decoder.max_positions} are accepted"
        )
    return calibration
