from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy
import pytest
from numpy.lib import NumpyVersion

from pyprune import triton_kernels

if not triton_kernels.available():
    pytest.skip(str(triton_kernels.why_not()), allow_module_level=True)
if version("triton").startswith("3.6.") and NumpyVersion(numpy.__version__) >= "2.4.0":
    pytest.skip("Triton 3.6's interpreter does not work with NumPy 2.4 and later", allow_module_level=True)

ROOT = Path(__file__).parents[2]
# The variable must be set before a kernel is decorated, and no other test may see interpreted kernels.
ENVIRONMENT = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": ""}


@pytest.mark.slow
def test_a_skipped_sublayer_reads_neither_its_weights_nor_its_cache():
    command = [sys.executable, "-m", "tests.triton.unread"]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "nothing was read\n"), done.stderr[-2000:]


FUNCTIONS = [
    f"{file}::{name}"
    for file in sorted(Path(__file__).parent.glob("*_cases.py"))
    for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)
]
PARTS, CASES_OF_A_PART = 2, 60  # several processes share them


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_every_kernel_agrees_with_its_reference_in_tritons_interpreter(part: int):
    names = FUNCTIONS[part::PARTS]
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *names]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= CASES_OF_A_PART
    assert not re.search(r"\d+ (skipped|xfailed)", done.stdout)


def test_the_parts_hold_every_function_once():
    assert sorted(name for part in range(PARTS) for name in FUNCTIONS[part::PARTS]) == sorted(set(FUNCTIONS))
