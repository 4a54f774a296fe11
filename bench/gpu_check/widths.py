"""Part: the products of an FFN at unfriendly widths, ours and cuBLAS, for few rows and many.

Each is a chain over several weights, recorded once and replayed, so that no weight is still in the L2 cache when its
turn comes again. The values between padded rows are zeros. Correctness is not looked at here.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu_check import predict
from bench.gpu_check.environment import gpu_report
from bench.gpu_check.race import free
from bench.gpu_check.replays import chain_replay, interleaved_replays
from bench.gpu_check.settings import Save, Settings
from pyprune import ops
from pyprune.strides import gpu_stride, mark_zero_gap

HIDDEN, WIDTHS, ROWS, ROUNDS, PER_ROUND = 4096, (7155, 7160, 7168, 8577), (1, 4, 16, 128, 1280), 5, 2
DRY_HIDDEN, DRY_WIDTHS, DRY_ROWS, DRY_ROUNDS = 64, (75, 80), (1, 4), 2
WEIGHTS = 6
"""Weights of a chain: 350 MB and more, several times an L2 cache of 60 MB."""

ALIGNED = 64
"""A width as GPUs like it."""

ROLES = ("gate and up", "down")
EPS = 1e-6


def run(settings: Settings, save: Save) -> dict[str, Any]:
    """Seconds of a product: all sides of a width and role take turns; predicted from bytes and operations alone."""
    dry, device = settings.dry_run, torch.device(settings.device)
    hidden, widths, rows, rounds = (
        (DRY_HIDDEN, DRY_WIDTHS, DRY_ROWS, DRY_ROUNDS) if dry else (HIDDEN, WIDTHS, ROWS, ROUNDS)
    )
    result: dict[str, Any] = {"dtype": "bfloat16", "hidden": hidden, "weights": WEIGHTS, "timings": []}
    for count, width, role in product(rows, widths, ROLES):
        if (width, role) == (widths[0], ROLES[0]):
            free(device)
        line: dict[str, Any] = {"rows": count, "width": width, "role": role, "errors": {}, "median_seconds": {}}
        chains = {}
        for name, call in sides(role, width, hidden, count, device):
            try:
                chain = chain_replay([call] * WEIGHTS, device)
                chain()
                chains[name] = chain
            except Exception as error:  # every kind: the text is the finding, and the other sides go on
                line["errors"][name] = f"{type(error).__name__}: {error}"[:500]
        replays = interleaved_replays(chains, device, rounds, PER_ROUND)
        line["seconds"] = {name: [seconds / WEIGHTS for seconds in samples] for name, samples in replays.items()}
        line["median_seconds"] = {name: statistics.median(seconds) for name, seconds in line["seconds"].items()}
        if settings.bandwidth:
            machine = predict.measured_machine(settings, device)
            shape = (width, hidden, count, machine, 2) if role == ROLES[0] else (hidden, width, count, machine)
            line["predicted_seconds"] = predict.linear_seconds(*shape)
        result["timings"].append(line)
        save(result)
    return {**result, "gpu": gpu_report()}


def sides(
    role: str, width: int, hidden: int, rows: int, device: torch.device
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Each side's call, which takes the next weight every time.

    Of gate and up, whose rows no width makes odd: ours, cuBLAS's, and cuBLAS's with the width rounded up to 64. Of
    down: ours and cuBLAS's on packed rows and on padded ones, and cuBLAS's on all of the padded ones, zeros included.
    """
    if role == ROLES[0]:
        yield "ours", _gate_up(width, hidden, rows, device)
        yield "cublas", _torch_pair(width, hidden, rows, device)
        if width % ALIGNED:
            yield "cublas, rounded up", _torch_pair(-(-width // ALIGNED) * ALIGNED, hidden, rows, device)
        return
    padded = gpu_stride(width, 2)
    yield "ours", _down(width, width, hidden, rows, device)
    yield "cublas", _torch_one(width, width, hidden, rows, device)
    if padded != width:
        yield "ours, padded rows", _down(width, padded, hidden, rows, device)
        yield "cublas, padded rows", _torch_one(width, padded, hidden, rows, device)
        yield "cublas, all of the padded", _torch_one(padded, padded, hidden, rows, device)


class Turn:
    """The values of a list one after the other, round and round."""

    def __init__(self, values: list[Any]) -> None:
        self._values, self._next = values, 0

    def __call__(self) -> Any:
        value = self._values[self._next % len(self._values)]
        self._next += 1
        return value


def _matrix(out: int, inner: int, stride: int, device: torch.device) -> Tensor:
    """Random values [out, inner], rows `stride` apart, zeros between: packed, or as weights are placed on a GPU."""
    store = torch.zeros(out, stride, dtype=torch.bfloat16, device=device)
    store[:, :inner] = torch.randn(out, inner, dtype=torch.bfloat16, device=device) * inner**-0.5
    return store if stride == inner else mark_zero_gap(store[:, :inner])


def _gate_up(width: int, hidden: int, rows: int, device: torch.device) -> Callable[[], object]:
    x, norm = _matrix(rows, hidden, hidden, device), torch.ones(hidden, dtype=torch.bfloat16, device=device)
    pairs = Turn([tuple(_matrix(width, hidden, hidden, device) for _ in "ab") for _ in range(WEIGHTS)])
    return lambda: ops.norm_gate_up(x, norm, EPS, *pairs(), None, None)


def _torch_pair(width: int, hidden: int, rows: int, device: torch.device) -> Callable[[], object]:
    x = _matrix(rows, hidden, hidden, device)
    pairs = Turn([tuple(_matrix(width, hidden, hidden, device) for _ in "ab") for _ in range(WEIGHTS)])
    return lambda: [F.linear(x, weight) for weight in pairs()]


def _down(width: int, padded: int, hidden: int, rows: int, device: torch.device) -> Callable[[], object]:
    x, residual = _matrix(rows, width, padded, device), _matrix(rows, hidden, hidden, device)
    weights = Turn([_matrix(hidden, width, padded, device) for _ in range(WEIGHTS)])
    return lambda: ops.linear_residual(x, weights(), None, residual)


def _torch_one(width: int, padded: int, hidden: int, rows: int, device: torch.device) -> Callable[[], object]:
    x = _matrix(rows, width, padded, device)
    weights = Turn([_matrix(hidden, width, padded, device) for _ in range(WEIGHTS)])
    return lambda: F.linear(x, weights())


def warm(settings: Settings) -> str:
    """Run our side of every width and number of rows once."""
    dry, device = settings.dry_run, torch.device(settings.device)
    hidden, widths, rows = (DRY_HIDDEN, DRY_WIDTHS, DRY_ROWS) if dry else (HIDDEN, WIDTHS, ROWS)
    for count, width, role in product(rows, widths, ROLES):
        for name, call in sides(role, width, hidden, count, device):
            if name.startswith("ours"):
                call()
        free(device)
    return f"widths {widths}, rows {rows}"
