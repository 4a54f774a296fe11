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

from bench.gpu_check.parts import BEST, DONE, STOPPED, Part, best_mode
from bench.gpu_check.settings import ROOT, Settings
from pyprune.errors import InputError
from pyprune.files import read_json, write_json

RESULT_FILE = "gpu_check.json"
FORMAT = "pyprune-gpu-check/1"
TAIL = 4000
LEAST_S = 8.0
"""A part that would get less time than this is not started."""

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
    """One run of the check: its results so far, in memory and in `folder / gpu_check.json`."""

    def __init__(
        self, folder: Path, settings: Settings, limit_s: float, gpu: bool, tell: Callable[[str], None] = print
    ) -> None:
        self.folder, self.settings, self.gpu, self.tell = folder, settings, gpu, tell
        self.began = time.monotonic()
        self.deadline = self.began + limit_s
        self.results: dict[str, Any] = {
            "format": FORMAT,
            "command": shlex.join(["python", "-m", "bench.gpu_check", *_without_folders(sys.argv[1:])]),
            "dry_run": settings.dry_run,
            "seed": settings.seed,
            "limit_s": limit_s,
            "seconds": 0.0,
            "parts": [],
        }
        self._scratch = tempfile.TemporaryDirectory(prefix="gpu-check-")

    def run(self, stages: Sequence[Sequence[Part]]) -> dict[str, Any]:
        """Run the stages one after the other; whatever happens, no process of theirs is left."""
        with self._scratch:
            for stage in stages:
                self._run_stage(stage)
        return self.results

    def _run_stage(self, stage: Sequence[Part]) -> None:
        running: list[_Running] = []
        try:
            for part in stage:
                why = self._why_not(part)
                if why is None:
                    running.append(self._start(part))
                else:
                    self._keep({"name": part.name, "group": part.group, "status": SKIPPED, "why": why})
            while running:
                time.sleep(0.05)
                for one in list(running):
                    late = time.monotonic() > one.started + one.limit_s
                    if one.process.poll() is not None or late:
                        running.remove(one)
                        self._keep(self._finish(one, late and one.process.returncode is None))
        finally:
            for one in running:
                kill_group(one.process)

    def _why_not(self, part: Part) -> str | None:
        if part.skip is not None:
            return part.skip
        if part.gpu and not self.gpu:
            return "torch finds no NVIDIA GPU"
        left = self.deadline - time.monotonic()
        return None if left >= LEAST_S else f"no time left: {max(left, 0):.0f} s of {self.results['limit_s']:.0f} s"

    def _start(self, part: Part) -> _Running:
        out = Path(self._scratch.name) / f"{part.name}.json"
        log = Path(self._scratch.name) / f"{part.name}.log"
        mode = best_mode(self.results["parts"]) if part.mode == BEST else part.mode
        told = Settings(
            kind=part.kind, out=str(out), seed=self.settings.seed, dry_run=self.settings.dry_run,
            model=self.settings.model, bandwidth=self._bandwidth(), options=part.options,
        )  # fmt: skip
        env = {**os.environ, "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false", **part.env}
        env["HF_HUB_OFFLINE"] = "1"
        env.pop("PYPRUNE_GPU", None)
        if mode is not None and not self.settings.dry_run:
            env["PYPRUNE_GPU"] = mode
        limit = min(part.limit_s, self.deadline - time.monotonic())
        self.tell(f"{part.name} ...")
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [*part.prefix, sys.executable, "-m", "bench.gpu_check.child", told.to_json()],
                cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, process_group=0,
            )  # fmt: skip
        return _Running(part, mode, process, time.monotonic(), limit, out, log)

    def _finish(self, one: _Running, late: bool) -> dict[str, Any]:
        seconds = time.monotonic() - one.started
        kill_group(one.process)
        text = one.log.read_text(encoding="utf-8", errors="replace")
        written: Any = {}
        with contextlib.suppress(InputError):
            written = read_json(one.out)
        status, why = DONE, None
        if late:
            status, why = STOPPED, f"at its limit of {one.limit_s:.0f} s; what it had by then is kept"
        elif one.process.returncode != 0 or not written.get("complete"):
            status, why = FAILED, written.get("error") or _last_line(text) or f"exit code {one.process.returncode}"
        part = {
            "name": one.part.name,
            "group": one.part.group,
            "status": status,
            "why": why,
            "mode": one.mode,
            "seconds": round(seconds, 2),
            "limit_s": round(one.limit_s, 1),
            "result": written.get("result", {}),
        }
        # A sanitizer speaks through its output alone; else only what went wrong is worth its length.
        if status != DONE or one.part.prefix:
            part["output_tail"] = text[-TAIL:]
        return part

    def _keep(self, part: dict[str, Any]) -> None:
        self.results["parts"].append(_public(part))
        self.results["seconds"] = round(time.monotonic() - self.began, 1)
        write_json(self.folder / RESULT_FILE, self.results)
        self.tell(f"{part['name']}: {part['status']}{'' if part.get('why') is None else ': ' + _line(part['why'])}")

    def _bandwidth(self) -> float | None:
        for part in self.results["parts"]:
            if part["name"] == "ceilings" and part["status"] == DONE:
                return part["result"]["bandwidth"]
        return None


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


def _without_folders(words: Sequence[str]) -> list[str]:
    return [os.path.basename(word.rstrip(os.sep)) if os.path.isabs(word) else word for word in words]


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


def _line(text: str, width: int = 160) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 3] + "..."
