from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pyprune import triton_kernels


@pytest.mark.skipif(not triton_kernels.available(), reason=str(triton_kernels.why_not()))
def test_every_kernel_agrees_with_its_definition_in_tritons_interpreter():
    # The variable must be set before a kernel is decorated, and no other test may see interpreted kernels.
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": ""}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-p",
        "no:cacheprovider",
        str(Path(__file__).with_name("cases.py")),
    ]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 50
    assert not re.search(r"\d+ (skipped|xfailed)", done.stdout)
