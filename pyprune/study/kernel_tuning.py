"""Chooses among the candidate configurations of an operator by timing them on the GPU at hand.

Only `pyprune tune` comes here; at run time nothing is tuned. A candidate is timed only when its result agrees with the
fixed configuration's and it spills no registers.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyprune.models.decoder import Decoder
from pyprune.study.tuning_cases import ROWS, Case
from pyprune.study.tuning_cases import cases as model_cases
from pyprune.triton_kernels import timing, tuning
from pyprune.triton_kernels.candidates import candidates
from pyprune.triton_kernels.configs import Architecture, Config
from pyprune.triton_kernels.launch import architecture, compiling_ahead, trying
from pyprune.triton_kernels.tuning import DTYPE_NAMES, Key, Machine, Tuned

ROUNDS = 15
MARGIN = 0.98  # of the fixed configuration's time: a smaller gain may be noise

Time = Callable[[Mapping[Config, Callable[[], object]]], Mapping[Config, Sequence[float]]]
"""Seconds of several runs of each configuration's call."""


@dataclass(frozen=True)
class Finding:
    """What was measured for a case: the quickest configuration, how many were timed, and why others were not."""

    case: Case
    tuned: Tuned
    timed: int
    refused: dict[Config, str]

    def refusals(self) -> list[dict[str, Any]]:
        """Why others were not timed, as JSON data."""
        return [
            {"operator": self.case.operator, "shape": asdict(self.case.shape), "config": asdict(config), "why": why}
            for config, why in self.refused.items()
        ]


def event_timer(device: torch.device) -> Time:
    """The timer for a GPU."""
    return partial(timing.interleaved, device=device, rounds=ROUNDS)


def tune(
    cases: Sequence[Case], arch: Architecture, device: torch.device, time: Time,
    done: Callable[[int, int], None] = lambda *_: None, jobs: int = 1,
) -> list[Finding]:  # fmt: skip
    """Measure every case; `done(finished, total)` is called after each. jobs: kernels of a case that are compiled at a
    time, before it is measured."""
    findings: list[Finding] = []
    with torch.inference_mode():
        for case in cases:
            configurations = candidates(case.operator, case.dtype, case.shape, arch)
            if jobs > 1:
                compile_ahead(case, configurations, device, jobs)
            findings.append(measure(case, configurations, device, time))
            done(len(findings), len(cases))
    return findings


def compile_ahead(case: Case, configurations: Sequence[Config], device: torch.device, jobs: int) -> None:
    """Compile the kernels of all configurations, `jobs` at a time. `measure` reports those that do not compile."""
    run, _ = case.prepare(device)
    with compiling_ahead(jobs):
        for config in configurations:
            with contextlib.suppress(Exception), trying(config):
                run()


def tune_model(
    decoder: Decoder, device: torch.device, path: Path, done: Callable[[int, int], None] = lambda *_: None,
    rows: Sequence[int] = ROWS, jobs: int = 1,
) -> tuple[Machine, list[Finding]]:  # fmt: skip
    """Measure the operators of a model on a CUDA device and add the findings to the file; its entries of other GPUs and
    models stay. Only sizes and dtypes of the model are read. rows, jobs: as in `tuning_cases.cases` and `tune`.
    InputError for a file that `tuning.read` refuses, before any work."""
    previous = tuning.read(path) if path.exists() else {}
    with torch.cuda.device(device):
        machine = tuning.machine(torch.cuda.current_device())
        arch = architecture(device)
        findings = tune(model_cases(decoder, arch, rows), arch, device, event_timer(device), done, jobs)
    tuning.write(path, {**previous, **entries(findings, machine)})
    return machine, findings


def entries(findings: Sequence[Finding], machine: Machine) -> dict[Key, Tuned]:
    """The findings as entries of the file."""
    return {
        Key(machine, finding.case.operator, DTYPE_NAMES[finding.case.dtype], finding.case.shape): finding.tuned
        for finding in findings
    }


def measure(case: Case, configurations: Sequence[Config], device: torch.device, time: Time) -> Finding:
    """The quickest of the configurations. The first is the fixed one, whose result is the reference."""
    fixed, *others = configurations
    run, written = case.prepare(device)
    with trying(fixed):
        expected = [tensor.clone() for tensor in (run(), *written)]
    accepted, refused = [fixed], {}
    for config in others:
        reason = _why_not(config, run, written, expected)
        if reason is None:
            accepted.append(config)
        else:
            refused[config] = reason
    samples = time({config: partial(_run_with, config, run) for config in accepted})
    return Finding(case, quickest(samples, fixed), len(accepted), refused)


def quickest(samples: Mapping[Config, Sequence[float]], fixed: Config) -> Tuned:
    """The configuration of the least median time, or the fixed one where that is as good (MARGIN)."""
    medians = {config: statistics.median(seconds) for config, seconds in samples.items()}
    best = min(medians, key=medians.__getitem__)
    if medians[best] > MARGIN * medians[fixed]:
        best = fixed
    return Tuned(best, medians[best], medians[fixed])


def agree(result: Tensor, expected: Tensor) -> bool:
    """Whether two results differ by no more than another order of summation explains."""
    if result.shape != expected.shape or not bool(torch.isfinite(result).all()):
        return False
    allowed = max(2 * torch.finfo(expected.dtype).eps, 1e-4) * float(expected.abs().max())
    return float((result.float() - expected.float()).abs().max()) <= allowed


def _run_with(config: Config, run: Callable[[], Tensor]) -> None:
    with trying(config):
        run()


def _why_not(
    config: Config, run: Callable[[], Tensor], written: Sequence[Tensor], expected: Sequence[Tensor]
) -> str | None:
    """Why a configuration is not timed; None where it is."""
    # A value that it does not write must not be that of the call before.
    for tensor in written:
        tensor.fill_(float("nan"))
    timing.poison(expected[0])
    try:
        with trying(config) as spills:
            results = [run(), *written]
        right = all(map(agree, results, expected))
    except Exception as error:  # of any kind: out of shared memory, not compilable, ...
        return f"{type(error).__name__}: {error}"
    if any(spills):
        return f"spills {max(spills)} words a thread"
    return None if right else "its result differs from the fixed configuration's"
