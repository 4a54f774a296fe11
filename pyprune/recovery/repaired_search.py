"""Greedy removal with a repair after each: the next unit is chosen on the model as it then stands.

With R_k the model repaired after k removals, R_0 the original,

    u_k = argmin_u ppl(R_k without u),    R_k+1 = repair(original, u_0 ... u_k),

or with each u repaired in its place (`pyprune.scoring.after_repair`) before its perplexity is taken. Each repair begins
with the original's weights, so the last model is what `repair` makes of all that was removed. A repair changes weights
from before the first cut on, which holds for no state of an earlier round: each round is a layer-major pass of its own.
Source of the rounds: SLEB (arXiv 2402.09025) for blocks, BlockPruner for sublayers, without repairs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pyprune.errors import InputError
from pyprune.models import as_decoder
from pyprune.models.decoder import Decoder
from pyprune.models.pruning import Pruning, original_name
from pyprune.progress import Progress
from pyprune.pruning.depth import removal
from pyprune.recovery.methods import (
    AT_CUT,
    TAKEN_BY,
    VERSION,
    WIDTH_ONLY,
    chain_of,
    check_options,
    require_processes,
)
from pyprune.recovery.repair import Repaired, repair_with_report
from pyprune.recovery.round_journal import RoundJournal
from pyprune.regression.held_out import HELD_OUT_EVERY
from pyprune.scoring.after_repair import NAME, require_other_windows
from pyprune.scoring.calibration import fingerprint
from pyprune.scoring.cost import Passes
from pyprune.scoring.criteria import criterion_named
from pyprune.scoring.distributed import process_group
from pyprune.scoring.edits import NO_EDITS
from pyprune.scoring.journal import journal_subject
from pyprune.scoring.open_evaluator import open_evaluator
from pyprune.scoring.perplexity import check_samples
from pyprune.scoring.progress import THOUSANDTHS, round_progress
from pyprune.scoring.removals import present_sublayers, removal_of
from pyprune.scoring.repaired_removals import FORMS, RepairedRemovals, repaired_removals
from pyprune.scoring.scores import json_number, read_number
from pyprune.scoring.searches.candidates import Candidates, choice_order
from pyprune.scoring.searches.result import Choice, SearchResult, Step, Unit

CRITERIA = ("ppl", NAME)
"""What rounds go by."""


@dataclass(frozen=True)
class RepairedSearch:
    """A greedy search with a repair after each removal, and the model repaired after the last one.

    In `search` the score of a step is the perplexity of the model repaired after it, and those of its choices are what
    the choice went by: before that repair. `cost` and `naive` count the scoring, not the repairs.
    """

    search: SearchResult
    repaired: Repaired

    @property
    def decoder(self) -> Decoder:
        """The repaired model, with the record of what was removed."""
        return self.repaired.decoder

    def pruning(self) -> Pruning:
        """What was removed."""
        return self.search.pruning()


def search_with_repair(
    model: Any,
    input_ids: Tensor,
    repair_ids: Tensor,
    repair: str,
    *,
    count: int | None = None,
    ratio: float | None = None,
    unit: str = "block",
    protect: Iterable[int] | str | None = None,
    criterion: str = "ppl",
    form: str | None = None,
    attention_mask: Tensor | None = None,
    calibration: dict[str, Any] | None = None,
    memory: int | None = None,
    resume: str | os.PathLike[str] | None = None,
    distributed: bool | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> RepairedSearch:
    """Remove units one after the other, repair the model after each, and choose the next one on the repaired model.

    input_ids `[S, T]`: windows that score. repair_ids `[S', T']`: other windows, at least eight, that repairs are
    fitted on. repair: a method of `pyprune.repair` for blocks and sublayers; options: its own. Those that fold a cut
    into what stands before it never remove the sublayer that begins the model. criterion: "ppl", or "ppl-after-repair"
    with its form. resume: a folder, in one process. count, ratio, unit, protect, attention_mask, calibration, memory,
    distributed and progress as in `pyprune.search`.
    Raises InputError as `search` and `repair` do, and for windows that are scored and repaired by too.
    """
    if criterion not in CRITERIA:
        raise InputError(f"criterion: {criterion!r} given; a search with repairs accepts {', '.join(CRITERIA)}")
    criterion_named(criterion).check(unit, {} if form is None else {"form": form})
    for name in options.keys() - {*TAKEN_BY, "seed"}:
        raise TypeError(f"search_with_repair: {name!r} is no option of a repair: {', '.join(TAKEN_BY)} and seed are")
    check_options(repair, **{"ridge": "auto"} | {name: value for name, value in options.items() if name != "seed"})
    methods = set(chain_of(repair))
    if methods & set(WIDTH_ONLY):
        raise InputError(f"repair: method {repair}: is for removed heads and neurons; a search removes units")
    original = as_decoder(model)
    candidates = Candidates.of(original, unit, protect, count, ratio)
    if methods & set(AT_CUT):
        beginning = min(present_sublayers(original))
        candidates = candidates.without(u for u in candidates.units if beginning in removal_of(original, [u]))
    ids, mask = check_samples(original, input_ids, attention_mask)
    fit_ids, _ = check_samples(original, repair_ids, None)
    require_other_windows(ids, fit_ids)
    if len(fit_ids) < HELD_OUT_EVERY:
        raise InputError(
            f"repair_ids: {len(fit_ids)} samples: every {HELD_OUT_EVERY}th is held out, so at least {HELD_OUT_EVERY}"
            " are expected"
        )
    processes = process_group(original.device, distributed).size
    if processes > 1 and resume is not None:
        raise InputError(f"resume: {os.fspath(resume)}: works in one process only; several were started")
    require_processes(repair, processes)
    if options.get("minutes") is not None and (processes > 1 or resume is not None):
        raise InputError(
            f"repair: minutes {options['minutes']}: is for a search in one process without resume, as what comes out"
            " depends on the time"
        )
    rounds = _Rounds(
        original, ids, mask, fit_ids, repair, criterion, form or FORMS[0], candidates, memory, distributed, progress,
        options,
    )  # fmt: skip
    if resume is not None:
        rounds.journal = RoundJournal(resume, rounds.subject())
    steps, baseline, repaired = rounds.run()
    search = SearchResult(
        model=original_name(original),
        method="greedy",
        criterion=criterion,
        unit=unit,
        baseline=baseline,
        steps=tuple(steps),
        parameters=candidates.parameters,
        cost=rounds.cost,
        naive=rounds.naive,
        calibration=calibration or fingerprint(ids),
        repair=repair,
    )
    return RepairedSearch(search, repaired)


@dataclass
class _Rounds:
    """The rounds of one search. `cost`, `naive`: of those so far."""

    original: Decoder
    ids: Tensor
    mask: Tensor | None
    fit_ids: Tensor
    method: str
    criterion: str
    form: str
    candidates: Candidates
    memory: int | None
    distributed: bool | None
    progress: Progress | None
    options: Mapping[str, Any]
    journal: RoundJournal | None = None
    cost: Passes = field(default_factory=Passes)
    naive: Passes = field(default_factory=Passes)
    _last: tuple[int, Repaired] | None = None  # by how many removals

    def subject(self) -> dict[str, Any]:
        """What the rounds belong to. How many there are is no part of it: a longer search goes on from a shorter."""
        work = f"search greedy {self.criterion} {self.form}, repair {self.method} {dict(sorted(self.options.items()))}"
        subject = journal_subject(self.original, self.ids, self.mask, work)
        units = [list(unit) for unit in self.candidates.units]
        fitted = fingerprint(self.fit_ids)["sha256"]
        return {**subject, "repaired by": fitted, "units": units, "version": VERSION}

    def run(self) -> tuple[list[Step], float, Repaired]:
        """The steps, the perplexity of the original, and the model repaired after the last step."""
        remaining = dict(self.candidates.units)
        perplexities: list[float] = []  # of the model after each number of removals
        chosen: list[tuple[Choice, int, tuple[Choice, ...]]] = []
        while (needed := self.candidates.steps_needed([parameters for _, parameters, _ in chosen])) is None:
            units = list(remaining)
            perplexity, *values = self._round(units, [choice.units[0] for choice, _, _ in chosen])
            choices = tuple(Choice((unit,), value) for unit, value in zip(units, values, strict=True))
            best = min(choices, key=choice_order)
            perplexities.append(perplexity)
            chosen.append((best, remaining.pop(best.units[0]), choices))
        removed = [choice.units[0] for choice, _, _ in chosen[:needed]]
        repaired = self._repaired(removed)
        if len(perplexities) == needed:  # no round has begun with this model
            perplexities += self._evaluate(repaired.decoder, [], RepairedRemovals({}, {}), needed)
        steps = [
            Step(best.units, score, parameters, choices)
            for (best, parameters, choices), score in zip(chosen[:needed], perplexities[1:], strict=False)
        ]
        return steps, perplexities[0], repaired

    def _round(self, units: Sequence[Unit], removed: Sequence[Unit]) -> list[float]:
        """The perplexity of the model without all that has gone, repaired, and that of each choice."""
        number = len(removed)
        kept = None if self.journal is None else self.journal.get(number)
        if kept is not None:
            self.cost += Passes.from_dict(kept["cost"])
            self.naive += Passes.from_dict(kept["naive"])
            return [read_number(value, f"round {number}") for value in kept["perplexities"]]
        before = self.cost, self.naive
        decoder = self._repaired(removed).decoder if removed else self.original
        if self.criterion == NAME:
            group = process_group(decoder.device, self.distributed)
            removals = repaired_removals(decoder, self.fit_ids, None, units, self.form, group, memory=self.memory)
        else:
            removals = RepairedRemovals({unit: removal_of(decoder, [unit]) for unit in units}, {})
        perplexities = self._evaluate(decoder, units, removals, number)
        if self.journal is not None:
            cost, naive = (
                Passes(after.blocks - earlier.blocks, after.heads - earlier.heads)
                for after, earlier in zip((self.cost, self.naive), before, strict=True)
            )
            data = {"perplexities": list(map(json_number, perplexities)), "cost": cost.to_dict()}
            self.journal.put(number, {**data, "naive": naive.to_dict()})
        return perplexities

    def _evaluate(
        self, decoder: Decoder, units: Sequence[Unit], removals: RepairedRemovals, number: int
    ) -> list[float]:
        """The perplexity of a model and without each unit, repaired or not."""
        with open_evaluator(
            decoder, self.ids, self.mask, f"round {number} {self.criterion}", replacements=removals.replacements,
            settings={"form": self.form, "repaired by": fingerprint(self.fit_ids)["sha256"]}, memory=self.memory,
            resume=None if self.journal is None else self.journal.scoring(number), distributed=self.distributed,
        ) as evaluator:  # fmt: skip
            candidates = [NO_EDITS, *(removals.edits[unit] for unit in units)]
            perplexities = evaluator.perplexities(candidates, self._progress(2 * number + 1))
        self.cost += evaluator.passes
        self.naive += evaluator.naive
        return perplexities

    def _repaired(self, removed: Sequence[Unit]) -> Repaired:
        """The original without the removed units, repaired."""
        number = len(removed)
        if self._last is not None and self._last[0] == number:  # removals only ever follow one another
            return self._last[1]
        inner = self._progress(2 * number)

        def shown(done: int, total: int) -> None:
            if inner is not None:
                inner(THOUSANDTHS * done // max(total, 1), THOUSANDTHS)

        repaired = repair_with_report(
            self.original,
            removal(original_name(self.original), removed, f"greedy {self.criterion}, repair {self.method}"),
            self.fit_ids,
            self.method,
            memory=self.memory,
            resume=None if self.journal is None else self.journal.repair(number),
            distributed=self.distributed,
            progress=shown,
            **self.options,
        )
        self._last = number, repaired
        return repaired

    def _progress(self, index: int) -> Progress | None:
        return round_progress(self.progress, index, 2 * self.candidates.max_steps() + 2)
