"""Python processes that know neither pyprune nor transformers yet, without the seconds that what these need takes.

One process imports the libraries under the two; each program is a fork of it, in an environment of its own.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

_FORKS = """
import contextlib, json, os, signal, sys, traceback
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
    except BaseException:
        traceback.print_exc()
        failed = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(failed)

while line := sys.stdin.readline():
    child = os.fork()
    if not child:
        program(**json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@functools.cache
def _forks() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", _FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def run_fresh(code: str, environment: Mapping[str, str], *arguments: object) -> str:
    """Run `code` with these arguments in such a process; what it prints. AssertionError if it fails."""
    forks = _forks()
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        request = {"code": code, "arguments": [*map(str, arguments)], "environment": dict(environment)}
        print(json.dumps({**request, "out": str(out), "err": str(err)}), file=forks.stdin, flush=True)
        status = forks.stdout.readline().strip()
        assert status == "0", err.read_text("utf-8") if err.exists() else f"it did not start: {status}"
        return out.read_text("utf-8")
