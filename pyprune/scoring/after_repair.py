"""`ppl-after-repair`: the perplexity without each unit, once what it did is repaired from forward passes.

A cheap repair of every unit is fitted on some windows in one pass (`pyprune.scoring.repaired_removals`), and all
repaired candidates are scored on other windows in one layer-major pass, so that no score flatters its own fit.
"""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor

from pyprune.errors import InputError
from pyprune.models.decoder import Decoder
from pyprune.models.load_any import AnyDecoder
from pyprune.models.pruning import original_name
from pyprune.progress import Progress
from pyprune.scoring.as_layered import as_layered
from pyprune.scoring.calibration import fingerprint
from pyprune.scoring.distributed import process_group
from pyprune.scoring.edits import NO_EDITS
from pyprune.scoring.open_evaluator import open_evaluator
from pyprune.scoring.perplexity import check_samples
from pyprune.scoring.progress import WorkProgress, round_progress
from pyprune.scoring.removals import present_sublayers, units_of
from pyprune.scoring.repaired_removals import FORMS, repaired_removals
from pyprune.scoring.scores import Scores

NAME = "ppl-after-repair"


def after_repair_scores(
    decoder: AnyDecoder,
    input_ids: Tensor,
    mask: Tensor | None,
    unit: str,
    *,
    calibration: dict[str, Any] | None = None,
    progress: Progress | None = None,
    form: str = FORMS[0],
    fit_ids: Tensor | None = None,
    memory: int | None = None,
    resume: str | os.PathLike[str] | None = None,
    distributed: bool | None = None,
) -> Scores:
    """Perplexity without each unit, repaired, on checked samples.

    form: what repairs, "linear" (ReplaceMe) or "mean-update". fit_ids: windows `[S', T']` that it is fitted on, other
    ones than `input_ids`; without them every second of `input_ids`, from the first on, is fitted on and the others
    are scored. `options` of the result say which. memory: the maps, hidden x hidden float32 a unit, come on top of it.
    The others as in `measured_scores`.
    InputError for a model of another family, windows that are fitted and scored too, and too few.
    """
    sizes = units_of(decoder, unit)
    if not isinstance(decoder, Decoder):
        raise InputError(f"criterion {NAME}: {decoder.name} runs by its own layers; a LLaMA-style model is expected")
    (fit_ids, fit_mask), (scored_ids, scored_mask) = split_windows(decoder, input_ids, mask, fit_ids)
    require_windows(fit_ids, form)
    fits = {"form": form, "fitted": fingerprint(fit_ids)["sha256"], "windows": [len(fit_ids), len(scored_ids)]}
    work = WorkProgress(round_progress(progress, 0, 2), 0.0, float(len(present_sublayers(decoder))))
    removals = repaired_removals(
        decoder, fit_ids, fit_mask, sizes, form, process_group(decoder.device, distributed), memory=memory,
        advance=lambda: work.advance(1.0),
    )  # fmt: skip
    work.finish()
    with open_evaluator(
        as_layered(decoder), scored_ids, scored_mask, f"score {NAME} {unit}", replacements=removals.replacements,
        settings={"fits": fits}, memory=memory, resume=resume, distributed=distributed,
    ) as evaluator:  # fmt: skip
        candidates = [NO_EDITS, *(removals.edits[candidate] for candidate in sizes)]
        baseline, *values = evaluator.perplexities(candidates, round_progress(progress, 1, 2))
    return Scores(
        model=original_name(decoder),
        criterion=NAME,
        unit=unit,
        baseline=baseline,
        units=list(sizes),
        values=values,
        calibration=calibration or fingerprint(input_ids),
        parameters=decoder.sizes().parameters(),
        unit_parameters=list(sizes.values()),
        options=fits,
    )


def split_windows(
    decoder: Decoder, input_ids: Tensor, mask: Tensor | None, fit_ids: Tensor | None
) -> tuple[tuple[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]:
    """The windows to fit on and those to score, each with its mask: `fit_ids` and all of `input_ids`, or every second
    of these each."""
    if fit_ids is not None:
        checked = check_samples(decoder, fit_ids, None)
        require_other_windows(input_ids, fit_ids)
        return checked, (input_ids, mask)
    if len(input_ids) < 2:
        raise InputError(
            f"input_ids: {len(input_ids)} sample given, but criterion {NAME} fits on some windows and scores others:"
            " more are expected, or fit_ids"
        )
    halves = [slice(start, None, 2) for start in range(2)]
    fitted, scored = (check_samples(decoder, input_ids[half], None if mask is None else mask[half]) for half in halves)
    return fitted, scored


def require_other_windows(input_ids: Tensor, fit_ids: Tensor) -> None:
    """Raise InputError where a window to fit on is scored too, which would flatter the fit."""
    scored = {tuple(window) for window in input_ids.tolist()}
    for number, window in enumerate(fit_ids.tolist()):
        if tuple(window) in scored:
            raise InputError(f"windows to fit on: number {number} is scored too; other windows are expected")


def require_windows(fit_ids: Tensor, form: str) -> None:
    """Raise InputError where there are too few windows to fit a form on."""
    if form == "linear" and len(fit_ids) < 2:
        raise InputError(
            f"windows to fit on: {len(fit_ids)}; form linear is fitted on some and chooses its ridge on others: at"
            " least 2 are expected (of input_ids alone every second is fitted on, so 3), or form mean-update"
        )
