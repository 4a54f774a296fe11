"""The GPU kernels' self-check, dry-run on a CPU: right operators pass, wrong ones fail it, nothing ends or halts it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from pyprune.commands.doctor import verdict_lines
from pyprune.ops.self_check import passes
from pyprune.ops.self_check.judgement import DTYPES
from pyprune.runtime.self_check import run, schedule
from pyprune.runtime.self_check.child import Orders
from pyprune.runtime.self_check.recorded import check_step
from pyprune.runtime.self_check.run import self_check
from pyprune.runtime.self_check.schedule import OPERATORS, jobs
from tests.cli.command_line import run as pyprune
from tests.runtime import wrong_kernels

CPU = torch.device("cpu")
HERE = passes.Identity("NVIDIA GeForce RTX 3090", "8.6", "580.65.06", "2.11.0", "3.6.0", "0123abcd")


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def dry_run(replaced: str) -> dict:
    return self_check(CPU, replaced=f"tests.runtime.wrong_kernels:{replaced}", small=True)


def names(verdict: dict) -> set[str]:
    return {failure["case"] for failure in verdict["failures"]}


@pytest.mark.slow
def test_the_reference_implementations_pass_against_themselves_and_nothing_is_kept_of_a_dry_run():
    progress: list[tuple[int, int]] = []
    verdict = self_check(CPU, small=True, report=lambda done, total: progress.append((done, total)))
    assert verdict["failures"] == []
    assert (verdict["passed"], verdict["complete"]) == (True, True)
    assert progress[-1] == (verdict["of"], verdict["of"]) == (verdict["done"], sum(map(len, jobs(True))))
    assert not passes.location().exists()


@pytest.mark.slow
def test_a_wrong_kernel_fails_the_check_in_its_own_cases_and_in_the_recorded_steps():
    verdict = dry_run("TOO_LARGE")
    assert (verdict["passed"], verdict["complete"]) == (False, True)
    expected = {item.label for job in jobs(True) for item in job if item.case is None or
                (item.case.operator == "linear_residual" and "skip True" not in item.label)}  # fmt: skip
    assert names(verdict) >= expected
    assert all("linear_residual" in name or "recorded" in name for name in names(verdict))


@pytest.mark.slow
def test_an_item_that_ends_or_halts_its_process_fails_and_the_others_go_on(monkeypatch):
    monkeypatch.setattr(schedule, "CASE_S", 8.0)
    verdict = dry_run("DEADLY")
    assert (verdict["passed"], verdict["complete"]) == (False, True)
    why = {failure["case"]: failure["exception"] for failure in verdict["failures"]}
    assert set(why) == {"bfloat16 padded_linear 1x129 -> 171", "float16 norm_head 1x129 -> 171"}
    assert "ended the process (signal 11)" in why["bfloat16 padded_linear 1x129 -> 171"]
    assert why["float16 norm_head 1x129 -> 171"] == "took longer than 8 s"
    lines = verdict_lines({**verdict, "device": "cuda:0", "gpu": "a GPU"})
    assert lines[0].startswith("cuda:0 (a GPU): FAILED, 2 of ")
    assert any("signal 11" in line for line in lines)


@pytest.mark.parametrize(("replaced", "passed"), [(wrong_kernels.right, True), (wrong_kernels.DEAF, False),
                                                  (wrong_kernels.STRAYING, False)])  # fmt: skip
def test_a_step_that_ignores_the_mask_or_writes_a_foreign_cache_row_fails(monkeypatch, replaced: dict, passed: bool):
    from pyprune import ops

    for name, function in replaced.items():
        monkeypatch.setattr(ops, name, function)
    verdict = check_step(2, torch.bfloat16, "cpu", 0)
    assert verdict["passed"] == passed, verdict
    if replaced is wrong_kernels.STRAYING:
        assert "a cache row was written that is no token's" in verdict["exception"]


def test_a_check_that_is_not_finished_is_no_pass():
    verdict = self_check(CPU, small=True, limit_s=0.5)
    assert (verdict["passed"], verdict["complete"], verdict["failures"]) == (False, False, [])
    assert verdict["seconds"] < 20
    [line] = verdict_lines({**verdict, "device": "cuda:0", "gpu": "a GPU"})
    assert "not finished" in line
    assert "Run it again" in line


def test_every_operator_is_checked_in_every_dtype_after_the_recorded_steps():
    every = jobs()
    assert [item.batch for item in every[0]] == [1, 2, 4, 16]
    for dtype in DTYPES:
        items = [item for job in every for item in job if item.dtype == dtype and item.case is not None]
        assert {item.case.operator for item in items} == set(OPERATORS)
        labels = [item.label for item in items]
        assert len(set(labels)) == len(labels)
        for part in ("1x7155 -> 4096", "skip True", "slots", "70x129 -> 171", "64x512 -> 256", "256x512 -> 1024",
                     "(1, 1, 9, 3, 64, 96, 700)"):  # fmt: skip
            assert any(part in label for label in labels), part


def as_on_a_gpu(monkeypatch, replaced: str) -> None:
    """What runs on `cuda:1` runs on the CPU instead."""
    monkeypatch.setattr(run.gpu, "best_available", lambda: ("triton", "no library"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 << 30, 8 << 30))
    monkeypatch.setattr(run.passes, "identity", lambda index: replace(HERE, gpu=f"GPU {index}"))
    monkeypatch.setattr(
        run, "Orders", lambda **told: Orders(**{**told, "device": "cpu", "replaced": replaced, "small": True})
    )


@pytest.mark.slow
def test_a_pass_is_kept_for_the_gpu_and_taken_back_by_a_failure(monkeypatch):
    as_on_a_gpu(monkeypatch, run.DRY_RUN)
    verdict = self_check(torch.device("cuda", 1), small=True)
    assert (verdict["passed"], verdict["kernels"], verdict["gpu"]) == (True, "triton", "GPU 1")
    assert passes.standing(replace(HERE, gpu="GPU 1")) == ("triton", "")
    assert passes.standing(HERE)[0] is None
    as_on_a_gpu(monkeypatch, "tests.runtime.wrong_kernels:TOO_LARGE")
    assert not self_check(torch.device("cuda", 1), small=True)["passed"]
    assert passes.standing(replace(HERE, gpu="GPU 1"))[0] is None


@pytest.mark.parametrize(
    ("cores", "free_gib", "expected"), [(16, 80, 6), (8, 80, 4), (2, 80, 1), (16, 4, 2), (16, 0, 1)]
)
def test_as_many_processes_run_as_cores_and_memory_allow(monkeypatch, cores: int, free_gib: int, expected: int):
    monkeypatch.setattr(run.os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free_gib << 30, 80 << 30))
    count = run._processes(torch.device("cuda", 0))
    assert count == expected
    lanes = run._lanes(count, False)
    assert len(lanes) == expected
    assert sorted(number for lane in lanes for number in lane) == list(range(sum(map(len, jobs()))))
    assert lanes[0][0] == 0


def test_doctor_checks_every_gpu_or_one_and_says_so(monkeypatch, capsys):
    checked: list[str] = []

    def check(device: torch.device, report: object) -> dict:
        checked.append(str(device))
        passed = device.index == 0
        return {"device": str(device), "gpu": "a GPU", "kernels": "cuda", "passed": passed, "complete": passed,
                "done": 3, "of": 3 if passed else 5, "failures": [], "seconds": 9.0}  # fmt: skip

    monkeypatch.setattr(run.gpu, "require_triton", lambda what: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(run, "self_check", check)
    code, out, err = pyprune(capsys, "doctor", "--gpu")
    assert (code, checked, err) == (1, ["cuda:0", "cuda:1"], "")
    first, second = out.splitlines()
    assert (
        first == "cuda:0 (a GPU): passed, 3 of 3 cases in 9 s. From now on pyprune uses its kernels (cuda) on this GPU."
    )
    assert second.startswith("cuda:1 (a GPU): not finished, 3 of 5 cases in 9 s")
    checked.clear()
    code, out, _ = pyprune(capsys, "doctor", "--gpu", "--device", "cuda:0", "--json")
    assert (code, checked) == (0, ["cuda:0"])
    assert [one["passed"] for one in json.loads(out)["self_checks"]] == [True]
    code, _, err = pyprune(capsys, "doctor", "--gpu", "--device", "2")
    assert (code, err) == (2, "pyprune: --device 2: a GPU from 0 to 1 is expected\n")


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_doctor_says_so_in_a_line():
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-m", "pyprune", "doctor", "--gpu"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("pyprune: doctor --gpu: no GPU that this torch can use")
    assert done.stderr.count("\n") == 1
