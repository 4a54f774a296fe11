"""`repair`: give a pruned model back what forward passes, or short local fits, can: no shape changes."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.models import as_decoder
from pyprune.models.decoder import Decoder
from pyprune.models.pruning import recorded
from pyprune.progress import Progress
from pyprune.recovery.blockwise import BLOCKWISE_STEPS, blockwise
from pyprune.recovery.closed_form import closed_form
from pyprune.recovery.fitting import Fitting, enough_samples
from pyprune.recovery.journal import RepairJournal
from pyprune.recovery.lineage import begins_at_block_0, equal_prefix, only_narrowed, pruned_from
from pyprune.recovery.local_steps import Steps, default_precision
from pyprune.recovery.methods import (
    AT_CUT,
    BY_MEANS,
    BY_STEPS,
    CHOICE,
    VERSION,
    WIDTH_CHOICE,
    chain_of,
    check_options,
    require_foldable,
    require_processes,
    require_samples,
)  # fmt: skip
from pyprune.recovery.tail import TAIL_STEPS, last_that_fit, tail
from pyprune.recovery.time_left import TimeLeft
from pyprune.regression.held_out import is_held_out, judging, spread
from pyprune.regression.normal_equations import RIDGES
from pyprune.scoring.distributed import process_group
from pyprune.scoring.journal import journal_subject
from pyprune.scoring.perplexity import check_samples, perplexity
from pyprune.scoring.scores import json_number

Fits = list[dict[str, Any]]


@dataclass(frozen=True)
class Repaired:
    """A repaired model, by which method, and what the held-out windows say.

    perplexities: of the original, the pruned and the repaired model on some 4,096 tokens of every eighth window of the
    calibration set (None where there are fewer). holds_out: whether these windows were kept from the fits. tried: the
    repaired perplexity of each method that `auto` tried. fits: of each projection or block, the method, its loss on
    those windows before and after, and the ridge. The loss of a closed form is the relative squared error of what the
    projection should add to the stream (of "linear-cosine" 1 less the cosine of the streams), of "blockwise" that of
    the stream, of "tail" the divergence in nats.
    """

    decoder: Decoder
    method: str
    perplexities: tuple[float, float, float] | None
    tried: dict[str, float]
    fits: Fits
    holds_out: bool = True

    def reached(self) -> float:
        """The perplexity of the repaired model there."""
        return math.nan if self.perplexities is None else self.perplexities[2]

    @property
    def harms(self) -> bool:
        """Whether the repaired model is worse than the pruned one on these windows."""
        return self.perplexities is not None and not self.perplexities[2] <= self.perplexities[1]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        values = None
        if self.perplexities is not None:
            values = dict(zip(("original", "pruned", "repaired"), map(json_number, self.perplexities), strict=True))
        return {
            "method": self.method,
            "held_out_perplexity" if self.holds_out else "calibration_perplexity": values,
            "harms": self.harms,
            "tried": {name: json_number(value) for name, value in self.tried.items()},
            "fits": self.fits,
        }


def repair(original: Any, pruned: Any, input_ids: Tensor, method: str = "auto", **options: Any) -> Decoder:
    """The pruned model with what was removed folded, as far as it goes, into the weights that stay.

    original: the unpruned model. pruned: a `Pruning` of it, or a decoder with its record. input_ids `[S, T]`:
    calibration; every eighth window is held out, to choose the ridge and the method, unless a single closed form has
    nothing to choose. method: one of `METHODS`, or several in order with + between them ("refit-all-o+tail"). "auto" is
    "refit-all-o"; another closed form where that does not help on the held-out windows, or the pruned model itself
    where none does; then "tail" where it helps. options: those of `repair_with_report`. Shapes, record and `index_map`
    stay, `original` is unchanged; "mean-update" and "flap-bias" add biases, which the record notes as compensation.
    Raises InputError for an unknown method or option, a model that was not made from the original, a removed run at
    block 0 for methods that fold it into what stands before, and tokens too few for the matrices without a ridge.
    """
    return repair_with_report(original, pruned, input_ids, method, **options).decoder


@torch.inference_mode(False)
def repair_with_report(
    original: Any,
    pruned: Any,
    input_ids: Tensor,
    method: str = "auto",
    *,
    ridge: float | str = "auto",
    weighting: str = "relative",
    first: float = 1.0,
    exact: bool = False,
    steps: int | None = None,
    rate: float | None = None,
    tail_blocks: int | None = None,
    precision: str | None = None,
    seed: int = 0,
    minutes: float | None = None,
    memory: int | None = None,
    resume: str | os.PathLike[str] | None = None,
    distributed: bool | None = None,
    progress: Progress = lambda done, total: None,
) -> Repaired:
    """`repair`, with what the held-out windows say.

    ridge: "auto" chooses on the held-out windows, from `normal_equations.RIDGES` on; a number from 0 is used as it is.
    weighting, first: `token_weights`. exact: products in float64. steps, rate, seed: of "blockwise" and "tail" (None:
    each method's own). tail_blocks: how many blocks "tail" fits (None: 16, or as many as a third of the free memory
    holds meanwhile). precision: of the products in those steps, "fp32" or "bf16" (None: bf16 where the device
    multiplies it, else fp32). minutes: "auto" begins nothing that would probably go beyond, and makes fewer steps to
    stay within; what comes out then depends on the machine's speed. memory: bytes for states; more lies in a temporary
    file (default: half of what is free). resume: folder of a journal of what is finished. Where gradient steps follow,
    a closed form takes no more windows than `fitting.enough_samples`.
    distributed: as in `score`; the closed forms share the samples, and "auto" leaves "tail" out.
    progress: (stages done, in all).
    """
    began = time.perf_counter()
    original = as_decoder(original)
    check_options(method, ridge, weighting, first, exact, steps, rate, tail_blocks, precision, minutes)
    chain = chain_of(method)
    pruned = pruned_from(original, pruned)
    ids, _ = check_samples(original, input_ids, None)
    require_samples(len(ids), chain, ridge)
    for name in chain:
        require_foldable(original, pruned, name)
    group = process_group(original.device, distributed)
    require_processes(method, group.size)
    if group.size > 1 and minutes is not None:
        raise InputError(f"repair: minutes {minutes}: is for one process; several were started")
    ridges = RIDGES if ridge == "auto" else (float(ridge),)
    numbers = tuple(range(group.rank, len(ids), group.size))
    holds_out = len(chain) > 1 or chain[0] in ("auto", *BY_STEPS) or (len(ridges) > 1 and chain[0] not in BY_MEANS)
    fitting = Fitting(ridges, weighting, first, exact, numbers, group, holds_out)
    of_products = precision or default_precision(pruned)
    by_steps = {
        name: replace(
            default, count=steps or default.count, rate=rate or default.rate, seed=seed, precision=of_products
        )
        for name, default in (("blockwise", BLOCKWISE_STEPS), ("tail", TAIL_STEPS))
    }
    journal = None
    if resume is not None:
        settings = {
            **by_steps, "tail_blocks": tail_blocks, "minutes": minutes, "processes": group.size, "holds_out": holds_out
        }  # fmt: skip
        work = f"repair, ridge {ridge}, {weighting}, first {first}, exact {exact}, {settings}"
        subject = _subject(original, pruned, ids, work) if group.rank == 0 else {}  # the others do not read it
        journal = RepairJournal(resume, subject, group)
    repairs = _Repairs(original, pruned, ids, fitting, by_steps, tail_blocks, memory, journal, progress)
    held_out = repairs.held_out()
    if not len(held_out):
        decoder, fits = repairs.in_order(chain)
        return Repaired(decoder, method, None, {}, fits, holds_out)
    timed = time.perf_counter()
    of_original = perplexity(original, held_out)
    timed = time.perf_counter() - timed
    before = of_original, perplexity(pruned, held_out)
    if method != "auto":
        decoder, fits = repairs.in_order(chain)
        return Repaired(decoder, method, (*before, judged(decoder, held_out)), {}, fits, holds_out)
    left = None if minutes is None else TimeLeft(began + 60 * minutes, timed, original, held_out.numel())
    return repairs.best(before, left)


@dataclass
class _Repairs:
    """Repairs of one pruned model on one calibration set."""

    original: Decoder
    pruned: Decoder
    ids: Tensor
    fitting: Fitting
    by_steps: dict[str, Steps]
    tail_blocks: int | None
    memory: int | None
    journal: RepairJournal | None
    progress: Progress

    @property
    def enough(self) -> int:
        """Windows that a closed form takes where gradient steps follow."""
        return enough_samples(self.pruned, self.ids.shape[1])

    def held_out(self) -> Tensor:
        """The windows that say what a repair is worth; none where too few are held out. Of a streamed model all that
        are: a pass takes the time to read it, whatever their number."""
        if self.original.streamed:
            return self.ids[[sample for sample in range(len(self.ids)) if is_held_out(sample)]]
        return self.ids[judging(*self.ids.shape)]

    @cached_property
    def shared(self) -> int:
        """How many blocks at the front both models have alike, to the bit."""
        return equal_prefix(self.original, self.pruned) if self.original.dtype == self.pruned.dtype else 0

    def in_order(self, chain: tuple[str, ...]) -> tuple[Decoder, Fits]:
        """The pruned model repaired by one method after the other."""
        decoder = self.pruned
        fits: Fits = []
        for place in range(len(chain)):
            samples = self.enough if set(chain[place + 1 :]) & set(BY_STEPS) else None
            decoder, more = self.last_of(chain[: place + 1], decoder, samples=samples)
            fits += more
        return decoder, fits

    def last_of(
        self, chain: tuple[str, ...], start: Decoder, count: int | None = None, samples: int | None = None
    ) -> tuple[Decoder, Fits]:
        """`start`, which all but the last method of the chain have repaired, repaired by that one: in `count` steps, or
        a closed form on about `samples` windows from all over the text (None: all)."""
        name, kept_as = chain[-1], "+".join(chain)
        common: dict[str, Any] = {
            "memory": self.memory, "journal": self.journal, "name": kept_as, "progress": self.progress
        }  # fmt: skip
        if name not in BY_STEPS:
            numbers = self.fitting.numbers or ()
            if samples is not None and samples < len(self.ids):
                chosen = set(spread(len(self.ids), samples))
                numbers = tuple(number for number in numbers if number in chosen)
                common["name"] = f"{kept_as} on {samples}"
            fitting = replace(self.fitting, numbers=numbers)
            decoder, fits = closed_form(self.original, start, self.ids[list(numbers)], name, fitting, **common)
            return decoder, [{"method": name, **fit} for fit in fits]
        steps = self.by_steps[name]
        steps = replace(steps, count=count or steps.count)
        ids = self.ids[spread(len(self.ids), steps.windows(self.ids.shape[1], len(self.ids)))]
        if name == "blockwise":
            decoder, losses = blockwise(self.original, start, ids, steps, **common)
        else:
            decoder, losses = tail(self.original, start, ids, steps, self._blocks_of_tail(), **common)
        described = {"method": name, "steps": steps.count}
        return decoder, [
            {**described, "blocks": list(loss.blocks), "before": loss.before, "after": loss.after} for loss in losses
        ]

    def best(self, before: tuple[float, float], left: TimeLeft | None) -> Repaired:
        """The first of the closed forms if it helps, else the best of the others; then "tail", kept where the held-out
        windows say that it helps ("blockwise" brings less in the same time). Nothing begins that `left` has no time
        for."""
        start = best = Repaired(self.pruned, "none", (*before, before[1]), {}, [])
        samples = self.enough if self.fitting.group.size == 1 else None
        choice = WIDTH_CHOICE if only_narrowed(self.original, self.pruned) else CHOICE
        for name in choice:
            folds_at_block_0 = name in AT_CUT and begins_at_block_0(self.original, self.pruned)
            if not folds_at_block_0 and self._has_time(left, name):
                best = min(best, self.better(start, name, samples=samples), key=Repaired.reached)
            if best.method == choice[0]:
                break
        if self.fitting.group.size == 1:
            count = self.by_steps["tail"].count if left is None else self._steps_within(left)
            if count:
                best = self.better(best, "tail", count)
        return best

    def better(self, start: Repaired, name: str, count: int | None = None, samples: int | None = None) -> Repaired:
        """`start` repaired by one more method, or `start` itself where the held-out windows say that this is better."""
        assert start.perplexities is not None  # there are held-out windows
        chain = (*(() if start.method == "none" else start.method.split("+")), name)
        decoder, fits = self.last_of(chain, start.decoder, count, samples)
        start.tried["+".join(chain)] = reached = judged(decoder, self.held_out())
        if not reached < start.reached():
            return start
        return Repaired(decoder, "+".join(chain), (*start.perplexities[:2], reached), start.tried, [*start.fits, *fits])

    def _blocks_of_tail(self) -> int:
        """How many of the last blocks "tail" fits."""
        if self.tail_blocks is not None:
            return self.tail_blocks
        blocks, device = self.pruned.sizes().blocks, self.original.device
        return self._decided("blocks of tail", lambda: last_that_fit(blocks, device))

    def _has_time(self, left: TimeLeft | None, name: str) -> bool:
        """Whether there is time for a closed form."""
        if left is None:
            return True
        models, tokens = (self.original, self.pruned), min(self.enough, len(self.ids)) * self.ids.shape[1]
        return bool(self._decided(f"time for {name}", lambda: left.is_enough_for_closed_form(tokens, *models)))

    def _steps_within(self, left: TimeLeft) -> int:
        """How many steps of "tail" there is time for."""
        return self._decided("steps of tail", lambda: self._steps_in_time(left))

    def _decided(self, what: str, decide: Callable[[], int]) -> int:
        """What depends on the machine, now or, where an interrupted repair decided it, as it was then."""
        entry = None if self.journal is None else self.journal.get(what)
        if entry is not None:
            return int(entry[1]["decided"])
        decision = int(decide())
        if self.journal is not None:
            self.journal.put(what, {}, {"decided": decision})
        return decision

    def _steps_in_time(self, left: TimeLeft) -> int:
        blocks, of_original = self.pruned.sizes().blocks, self.original.sizes().blocks
        (samples, seq_len), steps = self.ids.shape, self.by_steps["tail"]
        start = max(0, len(blocks) - self._blocks_of_tail())

        def before(count: int) -> float:
            tokens = replace(steps, count=count).windows(seq_len, samples) * seq_len
            streams = left.of_passes(tokens, of_original, blocks[self.shared : start])
            return streams + left.of_passes(2 * left.tokens, blocks[start:], heads=2)  # the held-out divergence, twice

        return left.steps(steps, seq_len, blocks[start:], before)


def judged(repaired: Decoder, held_out: Tensor) -> float:
    """The perplexity; NaN where the repaired model gives no numbers, which is worse than any."""
    try:
        return perplexity(repaired, held_out)
    except ArithmeticError:
        return math.nan


def _subject(original: Decoder, pruned: Decoder, ids: Tensor, work: str) -> dict[str, Any]:
    return {
        "format": f"pyprune repair journal {VERSION}",
        "original": journal_subject(original, ids, None, work),
        "pruned": journal_subject(pruned, ids, None, work),
        "pruning": recorded(pruned).to_dict(),
    }
