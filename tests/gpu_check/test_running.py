"""Running the check's parts: limits, breakdowns, what is kept, and that later parts keep their time."""

from __future__ import annotations

import json
import sys
import time

import pytest

from bench.gpu_check import install, runner
from bench.gpu_check.child import finite
from bench.gpu_check.parts import Part
from bench.gpu_check.runner import Check, allowed_seconds
from bench.gpu_check.settings import Settings


def script(text: str, **options) -> Part:
    """A part that runs `text` in place of the check's own child; the settings are the last argument."""
    prefix = (sys.executable, "-c", "import json, sys, time\ntold = json.loads(sys.argv[-1])\n" + text)
    return Part(**{"name": "script", "group": "ceilings", "limit_s": 20.0, "prefix": prefix, "gpu": False, **options})


@pytest.fixture
def check(tmp_path):
    """Not a dry run, whose parts have no limits of their own."""
    return Check(tmp_path, Settings("", ""), 60.0, gpu=lambda: False, tell=lambda line: None)


def written(folder) -> dict:
    return json.loads((folder / runner.RESULT_FILE).read_text())


@pytest.mark.alone
def test_a_part_past_its_limit_is_ended_with_all_it_started_and_keeps_what_it_had(check, tmp_path):
    text = f"""
import subprocess
child = subprocess.Popen(["sleep", "60"])
open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
json.dump({{"complete": False, "error": None, "result": {{"half": 1}}}}, open(told["out"], "w"))
time.sleep(60)
"""
    began = time.monotonic()
    [part] = check.run([[script(text, limit_s=1.5)]])["parts"]
    assert time.monotonic() - began < 15
    assert (part["status"], part["result"]) == ("stopped", {"half": 1})
    assert "limit of 2 s" in part["why"]
    pid = int((tmp_path / "pid").read_text())
    for _ in range(50):
        if not _alive(pid):
            break
        time.sleep(0.1)
    assert not _alive(pid)
    assert written(tmp_path)["parts"] == [part]


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.alone
def test_a_part_that_breaks_says_how_and_the_next_one_runs(check, tmp_path):
    broken = script("print('on the way'); sys.exit('no such kernel')", name="broken")
    fine = script(
        "json.dump({'complete': True, 'error': None, 'result': {'x': 1}}, open(told['out'], 'w'))", name="fine"
    )
    first, second = check.run([[broken], [fine]])["parts"]
    assert (first["status"], first["why"]) == ("failed", "no such kernel")
    assert "on the way" in first["output_tail"]
    assert (second["status"], second["result"], second["why"]) == ("done", {"x": 1}, None)


@pytest.mark.alone
def test_without_a_gpu_or_without_time_a_part_is_skipped_with_the_reason(check):
    check.deadline = time.monotonic() + 3
    parts_ = check.run([[script("", gpu=True)], [script("", name="late")], [script("", name="not", skip="because")]])[
        "parts"
    ]
    assert [part["status"] for part in parts_] == ["skipped"] * 3
    assert [part["why"] for part in parts_][::2] == ["torch finds no NVIDIA GPU", "because"]
    assert "no time left: 3 s of 60 s" in parts_[1]["why"]


@pytest.mark.alone
def test_parts_of_one_stage_run_side_by_side(check, tmp_path):
    def meets(mine: str, other: str) -> str:
        return f"""
import pathlib
pathlib.Path({str(tmp_path / mine)!r}).touch()
while not pathlib.Path({str(tmp_path / other)!r}).exists():
    time.sleep(0.05)
json.dump({{"complete": True, "error": None, "result": {{}}}}, open(told["out"], "w"))
"""

    both = [script(meets("a", "b"), name="a"), script(meets("b", "a"), name="b")]
    assert [part["status"] for part in check.run([both])["parts"]] == ["done", "done"]


def test_the_measured_ceilings_reach_the_parts_after_it(check):
    measure = script(
        "json.dump({'complete': True, 'error': None, 'result': {'bandwidth': 5.0, 'gemm_flops': 7.0}},"
        " open(told['out'], 'w'))",
        name="ceilings",
    )
    use = script("json.dump({'complete': True, 'error': None, 'result': told}, open(told['out'], 'w'))", name="use")
    told = check.run([[measure], [use]])["parts"][1]["result"]
    assert (told["bandwidth"], told["gemm_flops"]) == (5.0, 7.0)


def test_a_build_that_fails_is_told_with_the_end_of_its_output():
    step = install.attempt([sys.executable, "-c", "print('compiling'); raise SystemExit(3)"], "0")
    assert (step["returncode"], step["output_tail"]) == (3, "compiling\n")


def test_a_cuda_library_that_does_not_compile_does_not_cost_the_rest(monkeypatch):
    without_cuda = ("-c", "import os, sys; sys.exit(os.environ['PYPRUNE_CUDA'] != '0')")
    monkeypatch.setattr(install, "ATTEMPTS", ((without_cuda, "auto"), (without_cuda, "0"), (("-c", "1 / 0"), "0")))
    saved = []
    result = install.run(Settings("install", ""), saved.append)
    assert [step["returncode"] for step in result["steps"]] == [1, 0]
    monkeypatch.setattr(install, "ATTEMPTS", ((("-c", "1 / 0"), "0"),))
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        install.run(Settings("install", ""), saved.append)


def test_infinities_become_words_that_json_has():
    assert json.dumps(finite({"a": [float("inf"), 1.5], 2: float("nan")})) == '{"a": ["inf", 1.5], "2": "nan"}'


@pytest.mark.alone
def test_at_most_a_part_for_each_core_runs_at_once(check):
    check.side_by_side = 2
    text = (
        "time.sleep(0.4)\n"
        "json.dump({'complete': True, 'error': None, 'result': {'at': time.time()}}, open(told['out'], 'w'))"
    )
    ends = [part["result"]["at"] for part in check.run([[script(text, name=str(n)) for n in range(4)]])["parts"]]
    assert max(ends) - min(ends) > 0.3


def test_a_part_that_runs_to_its_limit_leaves_the_later_ones_the_seconds_that_they_should_take():
    queue = [Part("a", "a", 170, expected_s=90), Part("b", "b", 110, expected_s=60), Part("c", "c", 90, expected_s=60)]
    for left in (210.0, 230.0, 500.0):  # what they should take together, and more
        for place, part in enumerate(queue):
            reserved = sum(later.expected_s for later in queue[place + 1 :])
            given = allowed_seconds(part, left, reserved)
            assert part.expected_s <= given <= part.limit_s
            left -= given
            assert left >= reserved - 1e-9


def test_where_time_is_short_the_first_parts_have_theirs():
    first = Part("a", "a", 170, expected_s=90)
    assert allowed_seconds(first, 100.0, reserved=300.0) == 90.0
    assert allowed_seconds(first, 40.0, reserved=300.0) == 40.0


@pytest.mark.slow
def test_a_dry_runs_parts_are_not_stopped_at_limits_meant_for_a_gpu(tmp_path):
    check = Check(tmp_path, Settings("", "", dry_run=True), 60.0, gpu=lambda: True, tell=lambda line: None)
    text = "time.sleep(1.5); json.dump({'complete': True, 'error': None, 'result': {}}, open(told['out'], 'w'))"
    assert check.run([[script(text, limit_s=0.5)]])["parts"][0]["status"] == "done"
