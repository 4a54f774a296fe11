"""Running the parts: each in a process group of its own, under its own time limit, its result kept at once."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gpu_check.parts import BEST, DONE, STOPPED, Part, best_mode, expected_seconds
from bench.gpu_check.resume import FORMAT, Earlier
from bench.gpu_check.settings import ROOT, Settings
from pyprune.errors import InputError
from pyprune.files import read_json, write_json

RESULT_FILE = "gpu_check.json"
TAIL = 4000
LEAST_S = 8.0
"""A part that would get less time than this is not started."""

DRY_LIMIT_S = 300.0
"""Of every part of a dry run: on a small and busy machine the parts' own limits mean nothing."""

FAILED, SKIPPED = "failed", "skipped"


@dataclass
class _Running:
    part: Part
    mode: str | None
    process: subprocess.Popen[bytes]
    started: float
    limit_s: float
    out: Path
    log: Path


class Check:
    """One run of the check: its results so far, in memory and in `folder / gpu_check.json`.

    `gpu` answers whether there is one, when that is first asked. `machine` describes the machine at hand, `earlier`
    holds what is known already. `again`: parts that run though they are done.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        limit_s: float,
        gpu: Callable[[], bool],
        tell: Callable[[str], None] = print,
        machine: dict[str, Any] | None = None,
        earlier: Earlier | None = None,
        again: Sequence[str] = (),
    ) -> None:
        self.folder, self.settings, self.gpu, self.tell, self.again = folder, settings, gpu, tell, set(again)
        self.began = time.monotonic()
        self.deadline = self.began + limit_s
        self.side_by_side = max(2, len(os.sched_getaffinity(0)))
        self.earlier = earlier or Earlier()
        self.machine = self.earlier.machine(machine or {"id": "", "commit": None, "code": ""})
        self.results: dict[str, Any] = {
            "format": FORMAT,
            "command": shlex.join(["python", "-m", "bench.gpu_check", *_without_folders(sys.argv[1:])]),
            "dry_run": settings.dry_run,
            "seed": settings.seed,
            "limit_s": limit_s,
            "seconds": 0.0,
            "machines": self.earlier.machines,
            "parts": self.earlier.parts,
        }
        self._scratch = tempfile.TemporaryDirectory(prefix="gpu-check-")

    def run(self, stages: Sequence[Sequence[Part]]) -> dict[str, Any]:
        """Run the stages one after the other; whatever happens, no process of theirs is left."""
        todo = [stage for stage in map(self._not_done, stages) if stage]
        with self._scratch:
            for place, stage in enumerate(todo):
                self._run_stage(stage, reserved=expected_seconds(todo[place + 1 :]))
        self._write()
        return self.results

    def _not_done(self, stage: Sequence[Part]) -> list[Part]:
        todo = []
        for part in stage:
            done = self.earlier.done(part.name, self.machine if part.everywhere else None)
            if done and not {part.name, part.group} & self.again:
                self.tell(f"{part.name}: done before")
            else:
                todo.append(part)
        return todo

    def _run_stage(self, stage: Sequence[Part], reserved: float) -> None:
        """`reserved`: seconds that the stages after it should take, which this one may not use up."""
        running: list[_Running] = []
        waiting = list(stage)
        try:
            while waiting or running:
                while waiting and len(running) < self.side_by_side:
                    part = waiting.pop(0)
                    why = self._why_not(part)
                    if why is None:
                        running.append(self._start(part, reserved))
                    else:
                        record = {"name": part.name, "group": part.group, "status": SKIPPED, "why": why, "result": {}}
                        self._keep(part, record)
                time.sleep(0.05)
                for task in list(running):
                    late = time.monotonic() > task.started + task.limit_s
                    if task.process.poll() is not None or late:
                        running.remove(task)
                        self._keep(task.part, self._finish(task, late and task.process.returncode is None))
        finally:
            for task in running:
                kill_group(task.process)

    def _why_not(self, part: Part) -> str | None:
        if part.skip is not None:
            return part.skip
        if part.gpu and not self.gpu():
            return "torch finds no NVIDIA GPU"
        left = self.deadline - time.monotonic()
        return None if left >= LEAST_S else f"no time left: {max(left, 0):.0f} s of {self.results['limit_s']:.0f} s"

    def _start(self, part: Part, reserved: float) -> _Running:
        out = Path(self._scratch.name) / f"{part.name}.json"
        log = Path(self._scratch.name) / f"{part.name}.log"
        mode = best_mode(self.results["parts"]) if part.mode == BEST else part.mode
        settings = Settings(
            kind=part.kind, out=str(out), seed=self.settings.seed, dry_run=self.settings.dry_run,
            model=self.settings.model, bandwidth=self._ceiling("bandwidth"), gemm_flops=self._ceiling("gemm_flops"),
            options=part.options,
        )  # fmt: skip
        env = {**os.environ, "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false", **part.env}
        env["HF_HUB_OFFLINE"] = "1"
        # One for all parts, so that what one has compiled no other one compiles, under a sanitizer least of all.
        env["TRITON_CACHE_DIR"] = str(ROOT / "build" / "gpu-check-triton")
        env.pop("PYPRUNE_GPU", None)
        if mode is not None and not self.settings.dry_run:
            env["PYPRUNE_GPU"] = mode
        left = self.deadline - time.monotonic()
        limit = min(left, DRY_LIMIT_S) if self.settings.dry_run else allowed_seconds(part, left, reserved)
        self.tell(f"{part.name} ...")
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [*part.prefix, sys.executable, "-m", "bench.gpu_check.child", settings.to_json()],
                cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, process_group=0,
            )  # fmt: skip
        return _Running(part, mode, process, time.monotonic(), limit, out, log)

    def _finish(self, task: _Running, late: bool) -> dict[str, Any]:
        seconds = time.monotonic() - task.started
        kill_group(task.process)
        text = task.log.read_text(encoding="utf-8", errors="replace")
        written: Any = {}
        with contextlib.suppress(InputError):
            written = read_json(task.out)
        status, why = DONE, None
        if late:
            status, why = STOPPED, f"at its limit of {task.limit_s:.0f} s; what it had by then is kept"
        elif task.process.returncode != 0 or not written.get("complete"):
            status, why = FAILED, written.get("error") or _last_line(text) or f"exit code {task.process.returncode}"
        part = {
            "name": task.part.name,
            "group": task.part.group,
            "status": status,
            "why": why,
            "mode": task.mode,
            "seconds": round(seconds, 2),
            "expected_s": task.part.expected_s,
            "limit_s": round(task.limit_s, 1),
            "result": written.get("result", {}),
        }
        # A sanitizer speaks through its output alone; else only what went wrong is worth its length.
        if status != DONE or task.part.prefix:
            part["output_tail"] = text[-TAIL:]
        return part

    def _keep(self, part: Part, record: dict[str, Any]) -> None:
        record = {**record, "machine": self.machine, "everywhere": part.everywhere}
        self.earlier.add(_public(record))
        gpus = record["result"].get("machine", {}).get("gpus") if part.kind == "environment" else None
        if gpus:
            self.earlier.machines[self.machine]["gpu"] = gpus[0]["name"]
        self._write()
        why = "" if record.get("why") is None else ": " + _line(record["why"])
        self.tell(f"{record['name']}: {record['status']}{why}")

    def _write(self) -> None:
        self.results["seconds"] = round(time.monotonic() - self.began, 1)
        write_json(self.folder / RESULT_FILE, self.results)

    def _ceiling(self, name: str) -> float | None:
        for part in self.earlier.parts:
            if (part["name"], part["status"], part["machine"]) == ("ceilings", DONE, self.machine):
                return part["result"][name]
        return None


def allowed_seconds(part: Part, left: float, reserved: float) -> float:
    """How long a part may run: to its limit, as far as the stages after it keep the seconds that they should take; but
    as long as it should take itself in any case, for what comes first matters most."""
    return min(left, max(part.expected_s, min(part.limit_s, left - reserved)))


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """End the process and all it started: asked first, then made to."""
    for sign, patience in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 10.0)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)


def _public(data: Any) -> Any:
    """The same data without the machine's own folders: results are published."""
    if isinstance(data, str):
        places = {str(ROOT): ".", sys.prefix: "PREFIX", sys.base_prefix: "PREFIX", str(Path.home()): "~"}
        for place, name in places.items():
            if len(place) > 1:
                data = data.replace(place, name)
        return data
    if isinstance(data, dict):
        return {key: _public(value) for key, value in data.items()}
    return [_public(value) for value in data] if isinstance(data, list) else data


def _without_folders(arguments: Sequence[str]) -> list[str]:
    return [
        os.path.basename(argument.rstrip(os.sep)) if os.path.isabs(argument) else argument for argument in arguments
    ]


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


def _line(text: str, width: int = 160) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 3] + "..."
