"""Runs the self-check in processes of its own, under a limit for each item and for the whole, and gives the verdict."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pyprune.ops import gpu
from pyprune.ops.self_check import passes
from pyprune.runtime.self_check.child import BROKEN, Orders
from pyprune.runtime.self_check.schedule import jobs

LIMIT_S, START_S = 90.0, 45.0
"""Seconds of the whole, and of a process until it has begun with its first item."""

MOST_PROCESSES, MOST_RESTARTS = 6, 3
PROCESS_BYTES = 3 << 29
"""Of the GPU's memory that a process may need: its CUDA context and the largest case."""

DRY_RUN = "pyprune.ops.reference:REFERENCE"


class _Lane:
    """Some of the items, done one after the other by one process, and by another where that has ended."""

    def __init__(
        self, number: int, items: list[int], folder: Path, orders: dict[str, Any], env: dict[str, str]
    ) -> None:
        self.left = list(items)
        self.results: dict[int, dict[str, Any]] = {}
        self._out, self._log = folder / f"{number}.jsonl", folder / f"{number}.log"
        self._orders, self._env, self._starts, self._read = orders, env, 0, 0
        self._out.touch()
        self._start()

    def _start(self) -> None:
        self._starts += 1
        self._since, self._trying = time.monotonic(), -1
        orders = Orders(numbers=self.left, out=str(self._out), **self._orders)
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pyprune.runtime.self_check.child", orders.to_json()],
                env=self._env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def step(self, limits: list[float]) -> bool:
        """Read the reports since the last call; whether there is more to wait for. limits: seconds of each item."""
        ended = self.process.poll() is not None  # before its reports are read, so that none is missed
        self._read_reports()
        limit = limits[self._trying] if self._trying >= 0 else START_S
        late = time.monotonic() > self._since + limit
        if not self.left:
            if late:
                end(self.process)
            return not (ended or late)
        if not ended and not late:
            return True
        end(self.process)
        if ended and self.process.returncode == BROKEN and self._trying < 0:
            why = None  # the item that broke the device has reported it
        elif late:
            why = f"took longer than {limit:.0f} s"
        else:
            why = f"ended the process ({_ending(self.process.returncode)}): {_last_line(self._log)}"
        if why is not None:
            self.results[self.left.pop(0)] = {"passed": False, "exception": why}
        if not self.left or self._starts > MOST_RESTARTS:
            return False
        self._start()
        return True

    def _read_reports(self) -> None:
        with self._out.open("rb") as stream:
            stream.seek(self._read)
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                report = json.loads(line)
                self._since, self._trying = time.monotonic(), report.get("trying", -1)
                if "done" in report:
                    self.left.remove(report["done"])
                    self.results[report["done"]] = report["result"]


def self_check(
    device: torch.device,
    limit_s: float = LIMIT_S,
    replaced: str = DRY_RUN,
    small: bool = False,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Check all kernels on one GPU and keep a pass, or take an older one back; give the verdict and what failed.

    On a CPU a dry run: `replaced`, operators by name as `module:name`, in place of the kernels; nothing is kept.
    report: called with the number of items done and of all. small: few items.
    """
    began = time.monotonic()
    items = [item for job in jobs(small) for item in job]
    on_gpu = device.type == "cuda"
    kernels = gpu.best_available()[0] if on_gpu else replaced
    orders = {"device": str(device), "small": small, "replaced": None if on_gpu else replaced}
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    env["PYPRUNE_GPU"] = kernels if on_gpu else "reference"
    gpu_identity = passes.identity(device.index) if on_gpu else None
    results: dict[int, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="pyprune-self-check-") as folder:
        lanes: list[_Lane] = []
        try:
            for number, numbers in enumerate(_lanes(_processes(device), small)):
                lanes.append(_Lane(number, numbers, Path(folder), orders, env))
            running = list(lanes)
            while running and time.monotonic() < began + limit_s:
                time.sleep(0.1)
                running = [lane for lane in running if lane.step([item.limit_s for item in items])]
                report(sum(len(lane.results) for lane in lanes), len(items))
        finally:
            for lane in lanes:
                end(lane.process)
                results.update(lane.results)
    failures = [
        {**_finite(results[number]), "case": items[number].label}
        for number in sorted(results)
        if not results[number]["passed"]
    ]
    complete = len(results) == len(items)
    verdict = {
        "device": str(device), "gpu": gpu_identity.gpu if gpu_identity else None, "kernels": kernels,
        "passed": complete and not failures, "complete": complete, "done": len(results), "of": len(items),
        "failures": failures, "seconds": round(time.monotonic() - began, 1), "limit_seconds": limit_s,
    }  # fmt: skip
    if gpu_identity is not None and verdict["passed"]:
        passes.keep(gpu_identity, kernels, len(items))
    elif gpu_identity is not None:
        passes.forget(gpu_identity)
    return verdict


def _processes(device: torch.device) -> int:
    """How many at a time: one for two cores, as far as the GPU's free memory goes."""
    if device.type != "cuda":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, min(MOST_PROCESSES, cores // 2, free // PROCESS_BYTES))


def _lanes(count: int, small: bool) -> list[list[int]]:
    """The items' numbers, shared out by whole jobs: the kernels of one are compiled once."""
    lanes: list[list[int]] = [[] for _ in range(count)]
    number = 0
    for i, job in enumerate(jobs(small)):
        lanes[i % count] += range(number, number + len(job))
        number += len(job)
    return [lane for lane in lanes if lane]


def end(process: subprocess.Popen[bytes]) -> None:
    """Stop the process and all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # a driver that hangs may hold it for longer
        process.wait(10)


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "without a word"


def _finite(result: dict[str, Any]) -> dict[str, Any]:
    """The same with infinities and NaN, which JSON lacks, as strings."""
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in result.items()}
