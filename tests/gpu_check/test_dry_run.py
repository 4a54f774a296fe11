"""The scripts on a CPU in tiny sizes, in `make test-full` all: everything but the GPU's own work is gone through."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.gpu_check import parts, resume
from bench.gpu_check.parts import BUDGETS, HALVES, Part, plan
from bench.gpu_check.runner import RESULT_FILE
from bench.gpu_check.settings import ROOT
from bench.gpu_check.summary import summary
from pyprune.ops.self_check.cases import cases


@dataclass
class DryRun:
    """A process that ran some scripts, what it wrote, and where."""

    scripts: Sequence[str]
    process: subprocess.CompletedProcess[str]
    results: dict[str, Any]
    folder: Path

    def expected(self) -> list[Part]:
        return [part for stage in plan(list(self.scripts), True, "7b", "weights") for part in stage]


def dry_run(scripts: Sequence[str], tmp_path: Path, slice_folder: Path) -> DryRun:
    folder = tmp_path / "check"
    command = [sys.executable, "-m", "bench.gpu_check", *scripts, "--out", str(folder), "--dry-run", "--seed", "7"]
    done = subprocess.run(
        [*command, "--weights", str(slice_folder), "--limit", "1500"],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=1600,
    )  # fmt: skip
    return DryRun(scripts, done, json.loads((folder / RESULT_FILE).read_text()), folder)


@pytest.mark.slow
def test_a_dry_run_of_the_shortest_script(tmp_path: Path, slice_folder: Path):
    run = dry_run(["sweep"], tmp_path, slice_folder)
    every_part_is_done_or_says_why_not(run)
    the_file_says_which_machine_and_code_ran_it(run)
    found = {part["name"]: part["result"] for part in run.results["parts"]}
    assert found["ceilings"]["bandwidth"] > 0
    assert found["sweep"]["points"]
    no_folder_is_published_and_the_table_comes_last(run, slice_folder)


@pytest.mark.full
def test_a_dry_run_of_all_parts(tmp_path: Path, slice_folder: Path):
    run = dry_run(list(BUDGETS), tmp_path, slice_folder)
    every_part_is_done_or_says_why_not(run)
    groups = {part.group for part in run.expected()}
    assert {part.group for part in run.expected() if not part.skip} == groups - {"install", "sanitizer"}
    the_file_says_which_machine_and_code_ran_it(run)
    every_case_of_every_operator_passes(run)
    every_timed_part_has_its_seconds_and_nothing_broke(run)
    no_folder_is_published_and_the_table_comes_last(run, slice_folder)


def every_part_is_done_or_says_why_not(run: DryRun) -> None:
    done, results = run.process, run.results
    assert (done.returncode, done.stderr) == (0, "")
    expected = run.expected()
    assert sorted(part["name"] for part in results["parts"]) == sorted(part.name for part in expected)
    skipped = {part.name for part in expected if part.skip}
    for part in results["parts"]:
        assert part["status"] == ("skipped" if part["name"] in skipped else "done"), part
        assert (part["why"] is not None) == (part["status"] == "skipped"), part


def the_file_says_which_machine_and_code_ran_it(run: DryRun) -> None:
    results = run.results
    assert results["format"] == resume.FORMAT
    assert {part["machine"] for part in results["parts"]} == {0}
    assert results["machines"][0]["code"] == resume.code_digest()


def every_case_of_every_operator_passes(run: DryRun) -> None:
    found = {part["name"]: part.get("result", {}) for part in run.results["parts"]}
    every = {case.operator for case in cases(7, "tiny")}
    shares = [found[f"operators-triton-bfloat16-{share}"] for share in parts.SHARES]
    assert {case["operator"] for share in shares for case in share["cases"]} == every
    assert sum(share["of"] for share in shares) == len(list(cases(7, "tiny")))
    checked = [found[f"{kind}-cuda-{dtype}"] for kind in ("operators", "steps") for dtype in HALVES]
    for told in (*shares, *checked):
        assert told["failed"] == 0
        assert told["passed"] == told["of"] == len(told["cases"]) > 0
    assert found["tiny-cases"]["passed"] == len(list(cases(7, "tiny")))


def every_timed_part_has_its_seconds_and_nothing_broke(run: DryRun) -> None:
    found = {part["name"]: part.get("result", {}) for part in run.results["parts"]}
    assert found["ceilings"]["bandwidth"] > 0
    for line in found["decode-7b"]["timings"]:
        assert line["seconds"]
        assert line["predicted_seconds"] > 0
    assert [line["batch"] for line in found["decode-7b"]["timelines"]] == [1, 2]
    assert all(kernel["kernels"] for kernel in found["decode-7b"]["timelines"])
    assert set(found["masked"]["timings"][0]["step_seconds"]) == {"nothing", "host", "mask", "clear mask"}
    assert all(line["errors"] == {} and line["seconds"] for line in found["widths"]["timings"])
    assert found["scoring"]["errors"] == {}
    assert found["scoring"]["largest_relative_difference"] < 0.05
    for name in ("table1", "generations", "sweep"):
        assert found[name]["errors"] == {}
    assert found["table1"]["timings"]
    assert found["generations"]["timings"]
    assert found["layer_peer"]["timings"]
    assert found["sweep"]["points"]
    model = found["weights-auto"]
    assert all(prompt["tokens_as_our_cpu_path"] == 1 and prompt["same_tokens_twice"] for prompt in model["prompts"])
    assert all(told["done"] for name, told in found.items() if name.startswith("warm-"))


def no_folder_is_published_and_the_table_comes_last(run: DryRun, slice_folder: Path) -> None:
    done, results, folder = run.process, run.results, run.folder
    text = json.dumps(results)
    for place in (ROOT, folder, slice_folder.parent, sys.prefix):
        assert str(place) not in text
    assert done.stdout.rstrip().endswith(summary(results))
    assert "incomplete" not in summary(results)
    assert "dry run on a CPU" in done.stdout
