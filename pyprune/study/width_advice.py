"""What to round an FFN width to on this machine, from the times of its linears and not from a rule of thumb.

What was measured is kept in $PYPRUNE_WIDTHS, else pyprune/widths.json in the user's cache directory, for each device,
version of torch, dtype, hidden size, width and choice of rows.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pyprune.checks import is_int
from pyprune.errors import InputError
from pyprune.files import read_json, user_cache, write_json
from pyprune.models.load import require_device
from pyprune.ops import gpu, native, schemas
from pyprune.pruning.apply import padded_width
from pyprune.study import machine
from pyprune.study.linears import DTYPES, OURS, TORCH, Pool, our_linear, time_calls, torch_linear
from pyprune.study.measure import Speedup, median_interval, speedup
from pyprune.study.progress import Progress, silent

FORMAT = "pyprune-widths/1"
VARIABLE = "PYPRUNE_WIDTHS"
MULTIPLES = (1, 8, 16, 32, 64, 128, 256)
ROWS = (1, 16, 1024)
ROUNDS = 15
MARGIN = 1.02
"""A width that takes no more than this times the best, or not measurably more, is as good: the narrowest wins."""


@dataclass(frozen=True)
class Question:
    """An FFN width that is to be rounded, and what its answer depends on."""

    width: int
    hidden: int
    dtype: str
    rows: tuple[int, ...]
    device: str  # the GPU's or CPU's name
    threads: int
    torch: str
    kernels: str  # the instruction set or GPU kernels in use, and the package that they are of

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "rows": list(self.rows)}


@dataclass(frozen=True)
class Advice:
    """The times of one FFN's linears at each width it may be rounded to.

    `seconds[side][rows][width]`: of each round, gate, up and down together; sides are torch's linear and pyprune's.
    """

    question: Question
    seconds: Mapping[str, Mapping[int, Mapping[int, Sequence[float]]]]

    @property
    def choices(self) -> dict[int, int]:
        """Each width and the smallest multiple that leads to it, the narrowest first."""
        return candidates(self.question.width)

    @property
    def best(self) -> int:
        """The narrowest width that is as quick as the quickest (`MARGIN`), all sides and rows alike in weight."""
        costs = {width: self._costs(width) for width in self.choices}
        quickest = min(costs, key=lambda width: _middle(costs[width]))
        for width, width_costs in costs.items():
            ratios = [cost / quickest_cost for cost, quickest_cost in zip(width_costs, costs[quickest], strict=True)]
            low, _ = median_interval(ratios) or (min(ratios), max(ratios))
            if _middle(ratios) <= MARGIN or low <= 1.0:
                return width
        raise AssertionError("the quickest is as quick as itself")

    @property
    def multiple(self) -> int:
        """The smallest multiple that rounds the width to `best`; 1 where it is best as it is."""
        return self.choices[self.best]

    def gain(self, side: str, rows: int, width: int) -> Speedup:
        """Spread of how much quicker than the width as it is, paired round by round (`measure.speedup`)."""
        by_width = self.seconds[side][rows]
        return speedup(by_width[self.question.width], by_width[width])

    def cost(self, width: int) -> dict[str, float | int]:
        """Zeros that a block gets: parameters, bytes, and their share of its FFN."""
        added = 3 * self.question.hidden * (width - self.question.width)
        return {
            "parameters": added,
            "bytes": added * DTYPES[self.question.dtype].itemsize,
            "share": width / self.question.width - 1,
        }

    def _costs(self, width: int) -> list[float]:
        """Of each round: the geometric mean, over sides and rows, of the time relative to the width as it is."""
        parts = [
            [
                seconds / unrounded
                for seconds, unrounded in zip(by_width[width], by_width[self.question.width], strict=True)
            ]
            for by_rows in self.seconds.values()
            for by_width in by_rows.values()
        ]
        return [math.exp(sum(map(math.log, turn)) / len(turn)) for turn in zip(*parts, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """The question, the answer, what each choice costs and gains, and the raw samples."""
        return {
            "question": self.question.to_json(),
            "best": self.best,
            "multiple": self.multiple,
            "choices": [
                {
                    "width": width,
                    "multiple": multiple,
                    **self.cost(width),
                    "gain": {
                        side: {str(rows): self.gain(side, rows, width) for rows in by_rows}
                        for side, by_rows in self.seconds.items()
                    },
                }
                for width, multiple in self.choices.items()
            ],
            "seconds": _text_keys(self.seconds),
        }


def candidates(width: int) -> dict[int, int]:
    """What `width` may be rounded up to, each with the smallest of `MULTIPLES` that leads there."""
    multiples: dict[int, int] = {}
    for multiple in MULTIPLES:
        multiples.setdefault(padded_width(width, multiple), multiple)
    return multiples


def advise(
    width: int,
    hidden: int = 4096,
    rows: Sequence[int] = ROWS,
    dtype: str = "bfloat16",
    device: torch.device | str = "cpu",
    *,
    rounds: int = ROUNDS,
    again: bool = False,
    progress: Progress = silent,
) -> Advice:
    """What to round an FFN of this width to here: measured now, or kept from when it was; `again` measures anew.

    Every multiple of `MULTIPLES` is timed for `rows` activation rows with torch's linear and pyprune's, gate, up and
    down, all interleaved. InputError for sizes below 1, other dtypes, a device that is not there, or a file of kept
    measurements that is not sound.
    """
    for name, value in (("width", width), ("hidden", hidden), ("rounds", rounds), *(("rows", count) for count in rows)):
        if not is_int(value) or value < 1:
            raise InputError(f"advise: {name} {value!r}: a whole number from 1 is expected")
    if not rows:
        raise InputError("advise: no rows; at least one number of activation rows is expected")
    if dtype not in DTYPES:
        raise InputError(f"advise: dtype {dtype!r}: one of {', '.join(DTYPES)} is expected")
    place, path = require_device(device), location()
    question = Question(width, hidden, dtype, tuple(sorted(set(rows))), *_here(place))
    kept = read(path) if path.exists() else {}
    if question in kept and not again:
        return kept[question]
    advice = _measured(question, place, rounds, progress)
    write(path, {**kept, question: advice})
    return advice


def _measured(question: Question, device: torch.device, rounds: int, progress: Progress) -> Advice:
    width, hidden, widths = question.width, question.hidden, list(candidates(question.width))
    pool = Pool(hidden, widths[-1], DTYPES[question.dtype], device)
    makers = {TORCH: torch_linear, OURS: our_linear}
    seconds: dict[str, dict[int, dict[int, list[float]]]] = {side: {} for side in makers}
    for number, rows in enumerate(question.rows):
        progress(f"timing {width}", number, len(question.rows))
        calls = {}
        for side, maker in makers.items():
            for candidate in widths:
                gate, down = (maker(pool, role, candidate, hidden, rows) for role in ("gate/up", "down"))
                calls[f"{side} {candidate}"] = partial(_ffn, gate, down)
        samples = time_calls(calls, rounds, device)
        for side in makers:
            seconds[side][rows] = {candidate: samples[f"{side} {candidate}"] for candidate in widths}
    progress(f"timing {width}", len(question.rows), len(question.rows))
    return Advice(question, seconds)


def _ffn(gate: Any, down: Any) -> None:
    gate()
    gate()  # up is as large
    down()


def _here(device: torch.device) -> tuple[str, int, str, str]:
    """Device, threads, torch and kernels of a `Question`."""
    if device.type == "cuda":
        name, threads, kernels = torch.cuda.get_device_name(device), 1, gpu.choice_for(device).kernels
    else:
        name, threads = machine.describe()["cpu"], torch.get_num_threads()
        kernels = native.selected_isa() or "reference"
    return name, threads, torch.__version__, f"{kernels} of pyprune {machine.version('pyprune')}, {schemas.digest()}"


def _middle(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


# ---- what was measured, as a file -----------------------------------------------------------------------------------


def location() -> Path:
    """The file of kept measurements, whether or not it is there."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else user_cache("widths.json")


def write(path: str | os.PathLike[str], advices: Mapping[Question, Advice]) -> None:
    """Write the file, whole or not at all."""
    entries = [{"question": key.to_json(), "seconds": _text_keys(advice.seconds)} for key, advice in advices.items()]
    write_json(path, {"format": FORMAT, "entries": entries})


def read(path: str | os.PathLike[str]) -> dict[Question, Advice]:
    """What a file holds. InputError naming the file and the entry for anything that `write` would not have written."""
    expected = f"a file that `pyprune advise-width` wrote is expected (remove it, or name another in {VARIABLE})"
    data = read_json(path)
    if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get("entries"), list):
        raise InputError(f"{path}: is not of format {FORMAT}; {expected}")
    advices: dict[Question, Advice] = {}
    for number, entry in enumerate(data["entries"], start=1):
        try:
            question = Question(**{**entry["question"], "rows": tuple(entry["question"]["rows"])})
            advices[question] = Advice(question, _checked(question, entry["seconds"]))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{path}: entry {number}: {error!r}; {expected}") from None
    return advices


def _checked(question: Question, seconds: Any) -> dict[str, dict[int, dict[int, list[float]]]]:
    checked = {
        side: {
            int(rows): {int(width): list(runs) for width, runs in by_width.items()} for rows, by_width in part.items()
        }
        for side, part in seconds.items()
    }
    lengths = set()
    for side in (TORCH, OURS):
        if tuple(checked[side]) != question.rows or any(
            set(by) != set(candidates(question.width)) for by in checked[side].values()
        ):
            raise ValueError(f"{side}: times of every width for rows {list(question.rows)} are expected")
        lengths |= {len(runs) for by in checked[side].values() for runs in by.values()}
        times = [time for by in checked[side].values() for runs in by.values() for time in runs]
        if not all(isinstance(time, float) and 0 < time < math.inf for time in times):
            raise ValueError(f"{side}: positive seconds are expected")
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError("as many rounds of every width are expected")
    return checked


def _text_keys(seconds: Mapping[str, Mapping[int, Mapping[int, Sequence[float]]]]) -> dict[str, Any]:
    return {
        side: {str(rows): {str(width): list(runs) for width, runs in by.items()} for rows, by in part.items()}
        for side, part in seconds.items()
    }
