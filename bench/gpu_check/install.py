"""Part: the editable install, with the native libraries built here; a failing build is told and stops nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from bench.gpu_check.settings import ROOT, Save, Settings

PIP = ("-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index", "--verbose", "-e", ".")
IN_PLACE = ("setup.py", "build_ext", "--inplace")
ATTEMPTS = ((PIP, "auto"), (PIP, "0"), (IN_PLACE, "0"))
"""Commands and their PYPRUNE_CUDA, until one succeeds: a CUDA library that does not compile must not cost the rest."""

TAIL = 3000


def run(settings: Settings, save: Save) -> dict[str, Any]:
    """Install; where pip cannot, build the CPU library in place, so that the other parts can run from the checkout."""
    result: dict[str, Any] = {"steps": []}
    for arguments, cuda in ATTEMPTS:
        result["steps"].append(attempt([sys.executable, *arguments], cuda))
        result["libraries"] = sorted(path.name for path in (ROOT / "pyprune").glob("_*.so"))
        save(result)
        if result["steps"][-1]["returncode"] == 0:
            return result
    raise RuntimeError(f"neither pip nor setup.py could build; the last said: {result['steps'][-1]['output_tail']}")


def attempt(command: Sequence[str], cuda: str) -> dict[str, Any]:
    """Run `command` in the checkout; the command, its exit code, seconds and the end of what it said."""
    env = {**os.environ, "PYPRUNE_CUDA": cuda, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    before = time.monotonic()
    text = ""
    # Passed on line by line: if this is stopped at its limit, the log says how far it came.
    with subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.write(line)
            text = (text + line)[-TAIL:]
    return {
        "command": " ".join((f"PYPRUNE_CUDA={cuda}", "python", *command[1:])),
        "returncode": process.returncode,
        "seconds": time.monotonic() - before,
        "output_tail": text,
    }
