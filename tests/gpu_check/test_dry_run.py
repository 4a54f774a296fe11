"""All four scripts at once, on a CPU in tiny sizes: everything but the GPU's own work is gone through."""

from __future__ import annotations

import json
import sys

import pytest

from bench.gpu_check import parts, resume
from bench.gpu_check.parts import BUDGETS, HALVES, plan
from bench.gpu_check.settings import ROOT
from bench.gpu_check.summary import summary
from pyprune.ops.self_check.cases import cases


@pytest.mark.alone
def test_every_part_is_done_or_says_why_not(dry_run):
    done, results, _ = dry_run
    assert (done.returncode, done.stderr) == (0, "")
    expected = [part for stage in plan(list(BUDGETS), True, "7b", "weights") for part in stage]
    assert sorted(part["name"] for part in results["parts"]) == sorted(part.name for part in expected)
    skipped = {part.name for part in expected if part.skip}
    for part in results["parts"]:
        assert part["status"] == ("skipped" if part["name"] in skipped else "done"), part
        assert (part["why"] is not None) == (part["status"] == "skipped"), part
    assert {part.group for part in expected if not part.skip} == {part.group for part in expected} - {
        "install", "sanitizer",
    }  # fmt: skip


@pytest.mark.alone
def test_the_file_says_which_machine_and_code_ran_it(dry_run):
    results = dry_run[1]
    assert results["format"] == resume.FORMAT
    assert {part["machine"] for part in results["parts"]} == {0}
    assert results["machines"][0]["code"] == resume.code_digest()


@pytest.mark.alone
def test_every_case_of_every_operator_passes(dry_run):
    found = {part["name"]: part.get("result", {}) for part in dry_run[1]["parts"]}
    every = {case.operator for case in cases(7, "tiny")}
    shares = [found[f"operators-triton-bfloat16-{share}"] for share in parts.SHARES]
    assert {case["operator"] for share in shares for case in share["cases"]} == every
    assert sum(share["of"] for share in shares) == len(list(cases(7, "tiny")))
    checked = [found[f"{kind}-cuda-{dtype}"] for kind in ("operators", "steps") for dtype in HALVES]
    for told in (*shares, *checked):
        assert told["failed"] == 0
        assert told["passed"] == told["of"] == len(told["cases"]) > 0
    assert found["tiny-cases"]["passed"] == len(list(cases(7, "tiny")))


@pytest.mark.alone
def test_every_timed_part_has_its_seconds_and_nothing_broke(dry_run):
    found = {part["name"]: part.get("result", {}) for part in dry_run[1]["parts"]}
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


@pytest.mark.alone
def test_no_folder_is_published_and_the_table_comes_last(dry_run, slice_folder):
    done, results, folder = dry_run
    text = json.dumps(results)
    for place in (ROOT, folder, slice_folder.parent, sys.prefix):
        assert str(place) not in text
    assert done.stdout.rstrip().endswith(summary(results))
    assert "incomplete" not in summary(results)
    assert "dry run on a CPU" in done.stdout
