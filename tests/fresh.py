"""Python processes that know neither pyprune nor transformers yet, without the seconds that what these need takes.

One process imports the libraries under the two; each program is a fork of it, in an environment of its own.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_FORKS = """
import atexit, contextlib, json, os, signal, sys, threading, traceback
import huggingface_hub, requests, safetensors.torch, tokenizers, torch, torch._dynamo, torch.distributed.tensor, yaml
with contextlib.suppress(ImportError):
    import scipy.optimize  # where it is, transformers imports it
assert not {"pyprune", "transformers"} & set(sys.modules)

def program(code, arguments, environment, out, err):
    signal.alarm(300)
    for stream, name in ((1, out), (2, err)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT, 0o600), stream)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["-c", *arguments]
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    failed = 0
    try:
        exec(compile(code, "<string>", "exec"), sys.modules["__main__"].__dict__ | {"__name__": "__main__"})
    except SystemExit as exited:
        failed = exited.code or 0
        if not isinstance(failed, int):
            print(failed, file=sys.stderr)
            failed = 1
    except BaseException:
        traceback.print_exc()
        failed = 1
    threading._shutdown()  # as Python ends
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(failed)

while line := sys.stdin.readline():
    children = []
    for request in json.loads(line):
        children.append(os.fork())
        if not children[-1]:
            program(**request)
    print(*children, flush=True)
    for _ in children:
        child, status = os.waitpid(-1, 0)
        print(child, os.waitstatus_to_exitcode(status), flush=True)
"""


class _Forks:
    """The process whose forks run the programs, those of one `start_fresh` at a time."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", _FORKS]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self._told = b""
        self.is_busy = False

    def start(self, requests: list[dict[str, Any]]) -> list[int]:
        """The ids of the processes that run these."""
        assert not self.is_busy, "programs that others were started beside"
        self.is_busy = True
        self._process.stdin.write(json.dumps(requests).encode() + b"\n")
        return self.line()

    def line(self, seconds: float | None = None) -> list[int]:
        """The numbers of its next line; none where there is no line within some seconds."""
        while b"\n" not in self._told:
            if not select.select([self._process.stdout], [], [], seconds)[0]:
                return []
            read = os.read(self._process.stdout.fileno(), 4096)
            assert read, "the process that forks has ended"
            self._told += read
        line, self._told = self._told.split(b"\n", 1)
        return [int(number) for number in line.split()]


_forks = functools.cache(_Forks)


class FreshProcess:
    """One of the processes of `start_fresh`."""

    def __init__(self, pid: int, folder: Path, statuses: dict[int, int]) -> None:
        self.pid, self._folder, self._statuses = pid, folder, statuses

    def status(self, seconds: float | None = None) -> int | None:
        """Its exit status, -9 if signal 9 ended it; None where it has not ended within some seconds."""
        while self.pid not in self._statuses:
            if not (line := _forks().line(seconds)):
                return None
            self._statuses[line[0]] = line[1]
        return self._statuses[self.pid]

    def wait(self) -> int:
        """The exit status, once it has ended."""
        status = self.status()
        assert status is not None
        return status

    def printed(self, stream: str = "out") -> str:
        """What it wrote to "out" or "err"."""
        file = self._folder / stream
        return file.read_text("utf-8") if file.exists() else ""


@contextlib.contextmanager
def start_fresh(
    code: str, environment: Mapping[str, str], arguments: Sequence[Sequence[object]]
) -> Iterator[list[FreshProcess]]:
    """A process that runs `code` for each of these lists of arguments, all at once; whoever is left ends with them."""
    with tempfile.TemporaryDirectory() as folder:
        folders = [Path(folder) / str(number) for number in range(len(arguments))]
        for each in folders:
            each.mkdir()
        requests = [
            {"code": code, "arguments": [*map(str, words)], "environment": dict(environment),
             "out": str(each / "out"), "err": str(each / "err")}
            for words, each in zip(arguments, folders, strict=True)
        ]  # fmt: skip
        statuses: dict[int, int] = {}
        pids = _forks().start(requests)
        processes = [FreshProcess(pid, each, statuses) for pid, each in zip(pids, folders, strict=True)]
        try:
            yield processes
        finally:
            for process in processes:
                if process.status(0) is None:
                    os.kill(process.pid, signal.SIGKILL)
            for process in processes:
                process.wait()
            _forks().is_busy = False


def run_to_its_end(code: str, environment: Mapping[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `code` with these arguments in such a process, as `subprocess.run` would."""
    with start_fresh(code, environment, [arguments]) as [process]:
        return subprocess.CompletedProcess(["-c"], process.wait(), process.printed(), process.printed("err"))


def run_fresh(code: str, environment: Mapping[str, str], *arguments: object) -> str:
    """The same; what it prints. AssertionError if it fails."""
    done = run_to_its_end(code, environment, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout
