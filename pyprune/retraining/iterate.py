"""`iterate`: remove one unit, retrain, score again, as in Figure 5 of Shortened LLaMA.

Each round scores the model that the last training left, so nothing of an earlier scoring holds any more: weights have
changed below every state. Beside it stand the same number of removals without training, from one ranking (one-shot) and
ranked again each time (greedy).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from pyprune.checks import require_whole
from pyprune.errors import InputError
from pyprune.files import remove_parts, require_free_directory
from pyprune.models import as_decoder, load_sizes
from pyprune.models.decoder import Decoder
from pyprune.models.pruning import original_name
from pyprune.pruning.apply import apply
from pyprune.pruning.depth import removal
from pyprune.retraining.iterated import Iterated, Removal, Round, Unit
from pyprune.retraining.journal_path import journal_path
from pyprune.retraining.objectives.distillation import check_top_k, distillation_options
from pyprune.retraining.rounds import Rounds
from pyprune.retraining.settings import FIRST_CUT, Settings
from pyprune.retraining.train import (
    checked_settings,
    decoder_digest,
    require_cutoff,
    require_extra,
    require_first_device,
    require_one_process,
    retrain_with_report,
    samples_digest,
    training_samples,
)
from pyprune.scoring.calibration import fingerprint
from pyprune.scoring.calibration.sources import read_source
from pyprune.scoring.perplexity import check_samples, perplexities, perplexity
from pyprune.scoring.removals import NO_REMOVAL, removal_of
from pyprune.scoring.score import score
from pyprune.scoring.scores import json_number, read_number
from pyprune.scoring.searches import SearchResult, search
from pyprune.scoring.searches.candidates import Candidates

Trainer = Callable[[Decoder, int, int, Path | None, Callable[[int, int], None]], Decoder]
"""(model, steps, seed, state, progress) -> the model retrained, with its record. state: a file or folder that an
interrupted run may have left and that the training may write, or None; progress: called with (done, in all)."""
StageProgress = Callable[[str, int, int], None]
"""Called with what is being done, and (done, in all)."""


def iterate(
    model: Any,
    input_ids: Tensor,
    *,
    held_out: Tensor,
    count: int | None = None,
    ratio: float | None = None,
    unit: str = "block",
    protect: Iterable[int] | str | None = None,
    steps: int = 100,
    untrained: bool = True,
    one_shot_retrained: bool = False,
    train: Trainer | None = None,
    text: Any = None,
    instructions: Any = None,
    distill: bool = False,
    seed: int = 0,
    calibration: dict[str, Any] | None = None,
    memory: int | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool | str | os.PathLike[str] = False,
    progress: StageProgress = lambda stage, done, total: None,
    **options: Any,
) -> Iterated:
    """Remove a unit and retrain, again and again; the last model, and the perplexity after every step.

    model: what `load` takes; it is unchanged. input_ids `[S, T]`: calibration, by which each round chooses the unit
    whose removal costs least. held_out `[S, T]`: other text, on which all perplexities of the result are taken. count:
    rounds; or ratio: as many as a greedy search takes for that share of all parameters. unit, protect, calibration,
    memory as in `score`. steps: of each training; its seed is `seed` and the round. train: another training than
    `retrain`. text, instructions, options: of `retrain_with_report`, of which `eval_text` is the text that `held_out`
    is of: demonstration texts then lose the documents that quote it. distill: the unpruned model teaches.
    untrained: also take both curves without training, one-shot and greedy; False needs `count`, and saves their two
    searches. one_shot_retrained: also remove the front of the first ranking at once and train that model once, with the
    steps of all rounds. out: a directory for the last model and the curves (`Iterated.save`). resume: keep what is
    finished in a folder, `out` with `.journal` behind it or of this name, and go on from one that an interrupted run
    left; it is removed when `out` is written.

    InputError for values that cannot be had, before anything is computed where that can be known.
    """
    require_whole("iterate: steps", steps, 1)
    if not untrained and (count is None or one_shot_retrained):
        needed = "ratio" if count is None else "one_shot_retrained"
        raise InputError(f"iterate: untrained False: leaves out the search that {needed} needs; True is expected")
    training = _described_training(train, text, instructions, distill, steps, seed, options)
    journal = journal_path("iterate", out, resume)
    if protect is not None and not isinstance(protect, str):
        protect = sorted(protect)
    if out is not None:
        require_free_directory(out)
        if journal is not None:
            remove_parts(out)
    require_rounds(model, count, ratio, unit, protect, options.get("train_from", 0), options.get("distill_top_k"))
    original = as_decoder(model)
    original.require_weights()
    ids, _ = check_samples(original, input_ids, None)
    judged, _ = check_samples(original, held_out, None)
    counts: dict[str, int] = {}
    digest = None
    if train is None:
        require_first_device(original.device)
        teacher = original if distill else None
        train = partial(_retrained, text=text, instructions=instructions, options=options, teacher=teacher)
        of_text = {name: options[name] for name in OF_TEXTS if name in options and name != "eval_text"}
        if options.get("eval_text") is not None:
            of_text["held_out"] = read_source(options["eval_text"])
        cutoff = options.get("cutoff", Settings.cutoff)
        require_cutoff(original, cutoff)
        # Refused now, if at all.
        samples, _, counts = training_samples(original, text, instructions, cutoff, **of_text)
        digest = samples_digest(samples)
    subject = {
        "model": original.name,
        "weights": decoder_digest(original),
        "calibration": fingerprint(ids)["sha256"],
        "held_out": fingerprint(judged)["sha256"],
        "count": count,
        "ratio": ratio,
        "unit": unit,
        "protect": protect,
        "steps": steps,
        "seed": seed,
        "untrained": untrained,
        "one_shot_retrained": one_shot_retrained,
        "training": training,
        "samples": digest,
        "options": {name: _described(name, value) for name, value in options.items()},
    }
    rounds = Rounds(journal, subject)
    work = _Work(original, ids, judged, unit, protect, steps, seed, train, memory, rounds, progress)
    searches = rounds.part("searches", partial(work.searches, count, ratio) if untrained else work.no_searches)
    one_shot, greedy = (tuple(map(Removal.from_dict, searches[name])) for name in ("one_shot", "greedy"))
    finished, decoder = work.rounds_of(len(greedy) if untrained else count or 0)
    at_once = None
    if one_shot_retrained:
        at_once = read_number(rounds.part("one-shot retrained", partial(work.at_once, one_shot)), "perplexity")
        rounds.drop("one-shot.state")  # only now that what it led to is kept
    result = Iterated(
        model=original_name(original),
        unit=unit,
        steps=steps,
        baseline=read_number(searches["baseline"], "baseline"),
        parameters=original.parameters(),
        rounds=tuple(finished),
        one_shot=one_shot,
        greedy=greedy,
        one_shot_retrained=at_once,
        calibration=calibration or fingerprint(ids),
        held_out=fingerprint(judged),
        settings={"seed": seed, **training, **subject["options"], **counts},
        decoder=decoder,
    )
    if out is not None:
        result.save(out)
        rounds.remove()
    return result


def require_rounds(
    model: Any, count: int | None, ratio: float | None, unit: str = "block", protect: Iterable[int] | str | None = None,
    train_from: int | str = 0, top_k: int | None = None,
) -> None:  # fmt: skip
    """Raise InputError for what a model cannot have, as far as its configuration tells: units to remove, a first block
    that trains in every round, tokens to distill by."""
    sizes = load_sizes(model)
    removed = Candidates.of(sizes, unit, protect, count, ratio).max_steps()
    blocks = len(sizes.blocks) - (removed if unit == "block" else 0)
    if train_from != FIRST_CUT and int(train_from) >= blocks:
        raise InputError(f"iterate: train_from {train_from}: 0 to {blocks - 1} are accepted, which all rounds have")
    check_top_k(top_k, sizes.vocab_size)


def _described_training(
    train: Trainer | None, text: Any, instructions: Any, distill: bool, steps: int, seed: int, options: dict[str, Any]
) -> dict[str, Any]:
    """What identifies the training in the journal; InputError for what cannot be had."""
    if train is not None:
        for name in ("distill",) if distill else options:
            raise InputError(f"iterate: option {name!r}: of retrain, but train {train!r} trains")
        return {"train": getattr(train, "__qualname__", type(train).__qualname__)}
    require_extra()
    require_one_process("iterate")
    if (text is None) == (instructions is None):
        raise InputError("iterate: one of text and instructions, to retrain on, is expected")
    settings = {name: value for name, value in options.items() if name not in (*DISTILLATION, *OF_TEXTS)}
    checked_settings({**settings, "steps": steps, "seed": seed})
    distillation = {kind: options.get(name) for name, kind in DISTILLATION.items()}
    distillation_options(distill or None, None, distillation)
    return {"text": _text_name(text), "instructions": _text_name(instructions), "distill": distill}


def _described(name: str, value: Any) -> Any:
    """An option of `retrain_with_report` for the journal."""
    if name == "eval_text":
        return _text_name(value)
    if name == "tokenizer":
        return type(value).__qualname__  # what it makes of the text is in the samples
    return value if isinstance(value, int | float | str) else repr(value)


def _text_name(text: Any) -> str | None:
    """What a text is called; the samples say what is in it."""
    if text is None or isinstance(text, (str, os.PathLike)):
        return None if text is None else os.fspath(text)
    return getattr(text, "name", None) or type(text).__name__


OF_TEXTS = ("field", "calibrated", "tokenizer", "eval_text")
"""Options of `retrain_with_report` about its texts."""
DISTILLATION = {
    "distill_loss": "kind", "distill_top_k": "top_k", "distill_weight": "weight", "temperature": "temperature",
}  # fmt: skip
"""Options of `retrain_with_report` -> of `Distillation`."""


@dataclass(frozen=True)
class _Work:
    """What the rounds have in common."""

    original: Decoder
    ids: Tensor
    held_out: Tensor
    unit: str
    protect: Iterable[int] | str | None
    steps: int
    seed: int
    train: Trainer
    memory: int | None
    journal: Rounds
    progress: StageProgress

    def searches(self, count: int | None, ratio: float | None) -> dict[str, Any]:
        """The two curves without training, as JSON data."""
        find = partial(search, self.original, self.ids, unit=self.unit, protect=self.protect, memory=self.memory)
        greedy = find("greedy", count=count, ratio=ratio, progress=self._stage("greedy search"))
        one_shot = find("one-shot", count=len(greedy.order), progress=self._stage("one-shot search"))
        removals = [
            removal_of(self.original, result.order[:length])
            for result in (one_shot, greedy)
            for length in range(1, len(result.order) + 1)
        ]
        baseline, *values = perplexities(
            self.original, self.held_out, None, [NO_REMOVAL, *removals], memory=self.memory,
            progress=self._stage("held-out text"),
        )  # fmt: skip
        return {
            "baseline": json_number(baseline),
            "one_shot": _curve(one_shot, values[: len(one_shot.order)]),
            "greedy": _curve(greedy, values[len(one_shot.order) :]),
        }

    def no_searches(self) -> dict[str, Any]:
        """The same data without any curve."""
        baseline = perplexity(self.original, self.held_out, memory=self.memory)
        return {"baseline": json_number(baseline), "one_shot": [], "greedy": []}

    def rounds_of(self, count: int) -> tuple[list[Round], Decoder]:
        """The rounds, and the model after the last one."""
        names = [_result(number) for number in range(1, count + 1)]
        done = sum(1 for name in names if self.journal.has(name))
        decoder = self.original
        if done:
            decoder = self.journal.model(done, self.original, self._missing)
            self.journal.drop(f"round-{done - 1}")  # an interruption may have left it
        for number in range(done + 1, count + 1):
            decoder = self._round(number, count, decoder)
        return [Round.from_dict(self.journal.part(name, dict)) for name in names], decoder

    def at_once(self, one_shot: Sequence[Removal]) -> float | str:
        """The perplexity when the units go at once and one training has the steps of all rounds."""
        units, state = [step.removed for step in one_shot], self.journal.state_file("one-shot")
        pruned = apply(self.original, removal(original_name(self.original), units, f"one-shot ppl {self.unit}"))
        trained = self._trained(pruned, self.steps * len(units), self.seed, "one-shot", state)
        return json_number(perplexity(trained, self.held_out, memory=self.memory))

    def _round(self, number: int, count: int, decoder: Decoder) -> Decoder:
        """The model after one more round, whose parts are in the journal."""
        stage = f"round {number} of {count}"
        chosen = self.journal.part(f"round {number} choice", partial(self._choice, decoder, stage))
        unit: Unit = tuple(chosen["removed"])
        pruned = apply(decoder, removal(original_name(decoder), [unit], f"iterate ppl {self.unit}"))
        trained = self.journal.model(
            number, self.original, lambda state: self._trained(pruned, self.steps, self.seed + number, stage, state)
        )

        def result() -> dict[str, Any]:
            step = Round(
                unit,
                perplexity(pruned, self.held_out, memory=self.memory),
                read_number(chosen["score"], "score"),
                perplexity(trained, self.held_out, memory=self.memory),
                trained.parameters(),
            )
            return step.to_dict()

        self.journal.part(_result(number), result)
        self.journal.drop(f"round-{number - 1}")
        self.journal.drop(f"round-{number}.state")
        return trained

    def _choice(self, decoder: Decoder, stage: str) -> dict[str, Any]:
        """The unit whose removal costs least now, and the perplexity without it."""
        scores = score(
            decoder, self.ids, unit=self.unit, protect=self.protect, memory=self.memory,
            progress=self._stage(f"{stage}, scoring"),
        )  # fmt: skip
        unit = scores.order()[0]  # protected ones are last
        return {"removed": list(unit), "score": json_number(scores.values[scores.units.index(unit)])}

    def _trained(self, pruned: Decoder, steps: int, seed: int, stage: str, state: Path | None) -> Decoder:
        trained = self.train(pruned, steps, seed, state, self._stage(f"{stage}, retraining"))
        if trained.pruning != pruned.pruning or [b.index for b in trained.blocks] != [b.index for b in pruned.blocks]:
            raise InputError("iterate: train: gave a model with another record; the one that it was given is expected")
        return trained

    def _missing(self, state: Path | None) -> Decoder:
        raise InputError(f"{self.journal.path}: lacks the model of the last round; delete it to begin again")

    def _stage(self, name: str) -> Callable[[int, int], None]:
        return partial(self.progress, name)


def _result(number: int) -> str:
    return f"round {number} result"


def _curve(result: SearchResult, values: Sequence[float]) -> list[dict[str, Any]]:
    return [Removal(unit, value).to_dict() for unit, value in zip(result.order, values, strict=True)]


def _retrained(
    pruned: Decoder, steps: int, seed: int, state: Path | None, progress: Callable[[int, int], None], *,
    text: Any, instructions: Any, options: dict[str, Any], teacher: Decoder | None,
) -> Decoder:  # fmt: skip
    """`retrain` as a Trainer. It holds no samples out: each round is judged here."""
    result = retrain_with_report(
        pruned, text=text, instructions=instructions, steps=steps, seed=seed, resume=False if state is None else state,
        progress=lambda done, total, loss: progress(done, total), distill_from=teacher,
        held_out=0, **options,
    )  # fmt: skip
    return as_decoder(result.decoder)
