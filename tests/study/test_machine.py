"""What is said of a machine: enough to read a number with, nothing that identifies it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path

import pytest

from pyprune.ops import native
from pyprune.runtime import memory
from pyprune.study import machine
from tests.library import needs_library


def test_the_description_is_json_without_paths_or_the_host_name():
    text = json.dumps(machine.describe())
    assert os.getcwd() not in text
    assert os.path.expanduser("~") + "/" not in text
    if len(platform.node()) > 3:
        assert f'"{platform.node()}"' not in text


def test_versions_of_torch_and_numpy_are_those_imported():
    import numpy
    import torch

    versions = machine.describe()["versions"]
    assert versions["numpy"] == numpy.__version__
    assert torch.__version__.startswith(versions["torch"].split("+")[0])


def test_available_memory_is_not_more_than_the_machine_has():
    available, total = memory.available(), machine.describe()["memory_bytes"]
    if available is None or total is None:
        pytest.skip("this system does not tell its memory")
    assert 0 < available <= total


def test_the_commit_is_that_of_the_checkout_and_marks_changed_files(tmp_path):
    def git(*words: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
        return subprocess.run(
            ["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    (tmp_path / "pyprune").mkdir()
    (tmp_path / "file").write_text("one")
    assert machine.commit(tmp_path / "pyprune") is None
    git("init", "-q")
    git("add", "file")
    git("commit", "-q", "-m", "one")
    head = git("rev-parse", "HEAD").strip()
    assert machine.commit(tmp_path / "pyprune") == head
    (tmp_path / "file").write_text("two")
    assert machine.commit(tmp_path / "pyprune") == f"{head}-dirty"


def test_a_result_carries_the_commit_of_this_checkout():
    root = Path(machine.__file__).resolve().parents[2]
    if not (root / ".git").exists():
        pytest.skip("not run from a checkout")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
    assert machine.describe()["commit"].removesuffix("-dirty") == head.stdout.strip()


def test_a_device_is_named_by_its_index_and_a_cpu_by_its_threads():
    here = {"cpu": "A CPU", "threads": 2, "gpus": [{"name": "first"}, {"name": "second"}]}
    devices = ("cuda", "cuda:0", "cuda:1", "cuda:2", "cpu")
    assert [machine.device_name(here, device) for device in devices] == [
        "first", "first", "second", "cuda:2", "A CPU, 2 threads",
    ]  # fmt: skip
    assert machine.device_name({**here, "threads": 1}, "cpu") == "A CPU, 1 thread"


def test_the_kernels_that_ran_are_recorded(monkeypatch):
    monkeypatch.setenv("PYPRUNE_HUGE_PAGES", "0")
    monkeypatch.setenv("PYPRUNE_GEMM", "own")
    kernels = machine.describe()["kernels"]
    assert kernels["instruction_set"] == native.selected_isa()
    assert (kernels["huge_pages"], kernels["gemm"]) == (False, "own")
    monkeypatch.setattr(native, "_library", None)
    place = f"{native.LIBRARY_PATH} does not load"
    monkeypatch.setattr(native, "_reason", place)
    without = machine.describe()["kernels"]
    assert (without["library_loaded"], without["instruction_set"]) == (False, None)
    assert without["reason"] == f"{native.LIBRARY_PATH.name} does not load"


@needs_library
def test_times_of_other_kernels_are_not_of_the_same_machine(monkeypatch):
    here = machine.describe()
    assert machine.lasting(machine.describe()) == machine.lasting(here)
    monkeypatch.setattr(native, "_library", None)
    monkeypatch.setattr(native, "_reason", "switched off by PYPRUNE_NATIVE=0")
    assert machine.lasting(machine.describe()) != machine.lasting(here)
    older = {name: value for name, value in here.items() if name != "kernels"}
    assert "kernels" not in machine.lasting(older)
