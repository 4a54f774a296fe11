"""The closed forms over the pass of the original and the pruned model: a fit a sublayer, in order of depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyprune.models.decoder import Decoder, Linear
from pyprune.models.pruning import Pruning
from pyprune.progress import Progress
from pyprune.pruning.apply import apply
from pyprune.recovery.fitting import Fitting
from pyprune.recovery.journal import RepairJournal
from pyprune.recovery.mean_update import mean_update
from pyprune.recovery.methods import AT_CUT, FITS, WIDTH_ONLY
from pyprune.recovery.scale import divided, magnitude_ratio
from pyprune.recovery.streams import Stage, Streams, sublayers_of, with_projection, with_sublayers
from pyprune.recovery.width import flap_bias, stat
from pyprune.regression.normal_equations import Fit
from pyprune.scoring.process_group import ProcessGroup


@torch.no_grad()
def closed_form(
    original: Decoder,
    pruned: Decoder,
    input_ids: Tensor,
    method: str,
    fitting: Fitting,
    memory: int | None = None,
    journal: RepairJournal | None = None,
    name: str = "",
    progress: Progress = lambda done, total: None,
) -> tuple[Decoder, list[dict[str, Any]]]:
    """The pruned model repaired by `method`, and what each fit brought.

    journal: keeps each fitted projection under `name`; from there it comes without its sums and its solution, while the
    streams are run again. In one process a finished repair comes from there whole, without the pass.
    """
    finished = journal if fitting.group.size == 1 and (method in FITS or method == "stat") else None
    if finished is not None and (entry := finished.get(f"{name}.finished")) is not None:
        return _restored(pruned, entry[1]["fits"], finished, name), entry[1]["fits"]
    streams = Streams(
        original, pruned, input_ids, memory, keeps_original_inputs=method in WIDTH_ONLY,
        ends_at_change=method in (*AT_CUT, *WIDTH_ONLY),
    )  # fmt: skip
    total = sum(1 for _ in sublayers_of(pruned.sizes().blocks))
    fits: list[dict[str, Any]] = []
    added: dict[str, Tensor] = {}
    factor = 1.0
    for done, stage in enumerate(streams.stages()):
        block, kind = stage.place
        if method in FITS or method == "stat":
            kept = Kept(journal, _part(name, block, kind), fitting.group)
            if (values := kept.restored(stage)) is None:
                fit = stat(stage, fitting) if method == "stat" else FITS[method](stage, fitting)
                values = kept.kept(stage, fit)
            if values is not None:
                fits.append({"block": block, "kind": kind, **values})
        elif method == "scale":
            if factor != 1.0:
                stage.projection = divided(stage.projection, factor)
            factor = magnitude_ratio(stage, fitting) or factor
        else:
            bias = mean_update(stage, fitting) if method == "mean-update" else flap_bias(stage, fitting)
            if bias is not None:
                added[f"blocks.{block}.{'o' if kind == 'mha' else 'down'}.bias"] = bias
                stage.projection = _biased(stage.projection, bias)
        progress(done, total)
    if factor != 1.0:
        streams.change_rest(lambda projection: divided(projection, factor))
    progress(total, total)
    if added:
        return apply(pruned, Pruning(compensation=added, made_by=f"repair {method}")), fits  # type: ignore[arg-type]  # validated there
    if finished is not None:
        finished.put(f"{name}.finished", {}, {"fits": fits})
    return streams.result(), fits


def _part(name: str, block: int, kind: str) -> str:
    """What the part of a journal is called that has one fitted projection."""
    return f"{name}.block-{block}.{kind}"


def _restored(pruned: Decoder, fits: Sequence[dict[str, Any]], journal: RepairJournal, name: str) -> Decoder:
    """The pruned model with the projections that a finished repair left in the journal."""
    sublayers = dict(sublayers_of(pruned.blocks))
    for fit in fits:
        place = fit["block"], fit["kind"]
        entry = journal.get(_part(name, *place))
        assert entry is not None  # written before what says that all are
        weights = {key: tensor.to(pruned.device) for key, tensor in entry[0].items()}
        sublayers[place] = with_projection(sublayers[place], Linear(weights["weight"], weights.get("bias")))
    return with_sublayers(pruned, sublayers)


class Kept:
    """One stage's part of a journal, which rank 0 reads and writes for all processes."""

    def __init__(self, journal: RepairJournal | None, name: str, group: ProcessGroup) -> None:
        self._journal, self._name, self._group = journal, name, group

    def restored(self, stage: Stage) -> dict[str, Any] | None:
        """Put the finished projection into the stage: what its fit brought, None where there is none."""
        if self._journal is None:
            return None
        entry = self._journal.get(self._name) if self._group.rank == 0 else None
        # ridge (-1: none), before and after; all -2 where the part is not finished
        numbers = torch.full((3,), -2.0, dtype=torch.float64, device=stage.before.device)
        if entry is not None:
            ridge = -1.0 if entry[1]["ridge"] is None else entry[1]["ridge"]
            numbers = numbers.new_tensor([ridge, entry[1]["before"], entry[1]["after"]])
        self._group.broadcast(numbers)
        ridge, before, after = numbers.tolist()
        if ridge == -2:
            return None
        present = stage.projection
        weight, bias = (
            torch.empty_like(present.weight),
            None if present.bias is None else torch.empty_like(present.bias),
        )
        if entry is not None:
            weight.copy_(entry[0]["weight"])
            if bias is not None:
                bias.copy_(entry[0]["bias"])
        self._group.broadcast(weight, *(() if bias is None else (bias,)))
        stage.projection = Linear(weight, bias)
        return {"ridge": None if ridge == -1 else ridge, "before": before, "after": after}

    def kept(self, stage: Stage, fit: Fit | None) -> dict[str, Any] | None:
        """Keep the stage's projection; what its fit brought."""
        if fit is None:
            return None
        values = {"ridge": fit.ridge, "before": fit.before, "after": fit.after}
        if self._journal is not None and self._group.rank == 0:
            self._journal.put(self._name, dict(stage.projection.tensors()), values)
        return values


def _biased(linear: Linear, bias: Tensor) -> Linear:
    """As `apply` adds it: float32 sums, rounded once."""
    total = bias.float() if linear.bias is None else bias.float() + linear.bias
    return Linear(linear.weight, total.to(linear.weight.dtype))
