"""The scripts: their names and options, and that they fit the time for which a machine is lent."""

from __future__ import annotations

import pytest

from bench.gpu_check import parts, runner
from bench.gpu_check.__main__ import LIMIT_S, listing, main
from bench.gpu_check.parts import BUDGETS, best_mode, expected_seconds, plan

COMMAND_S, LENT_S, START_S = 600, 900, 90
"""What one command may take, what all may take together, and what a machine's start takes of that."""


def all_parts(*names: str, **options: str | None) -> list[parts.Part]:
    return [part for stage in plan(names, **options) for part in stage]


# --- time ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(BUDGETS))
def test_each_script_keeps_its_budget(name):
    assert 0 < expected_seconds(plan([name])) <= BUDGETS[name]
    assert all(part.expected_s > 0 for part in all_parts(name))


def test_mission_keeps_its_budget_with_the_larger_model_in_a_call_of_its_own():
    assert expected_seconds(plan(["mission"], model="13b")) <= BUDGETS["mission"] + 40


def test_two_commands_hold_everything_and_both_with_two_starts_fit_the_time_that_is_lent():
    first = expected_seconds(plan(["install", "correct", "fast"]))
    second = expected_seconds(plan(["install", "mission", "sweep"]))  # a fresh machine installs again
    assert max(first, second) <= LIMIT_S < COMMAND_S
    assert first + second + 2 * START_S <= LENT_S


def test_no_part_is_expected_to_take_its_limit_and_no_limit_takes_the_whole():
    for part in all_parts(*BUDGETS, weights="a model"):
        assert 1.3 * part.expected_s <= part.limit_s <= 0.35 * LIMIT_S, part


def test_what_the_sanitizers_run_is_compiled_in_the_stage_before_them():
    stages = plan(["correct"])
    places = {part.name: (place, part) for place, stage in enumerate(stages) for part in stage}
    compiled, tiny = places["tiny-cases"]
    for tool in ("memcheck", "racecheck"):
        place, part = places[f"sanitizer-{tool}"]
        assert place > compiled
        assert (part.kind, part.options, part.mode) == (tiny.kind, tiny.options, tiny.mode)


def test_timed_parts_run_alone():
    for stage in plan(["fast", "mission", "sweep"]):
        if {part.group for part in stage} - {"environment", "ceilings", "warm"}:
            assert len(stage) == 1


# --- names and options --------------------------------------------------------------------------------------------


def test_scripts_run_in_the_order_given_and_no_part_twice():
    names = [part.name for part in all_parts("fast", "correct", "mission")]
    assert len(names) == len(set(names))
    assert names.index("scoring") < names.index("operators-cuda-bfloat16") < names.index("table1")


def test_every_operator_is_in_a_share():
    from pyprune import ops

    shared = [name for share in parts.SHARES.values() for name in share]
    assert sorted(shared) == sorted(ops.gpu.KERNELS)


def test_without_a_name_it_says_what_there_is(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out.rstrip("\n")
    assert shown == listing()
    for name in BUDGETS:
        assert f"  {name}" in shown


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["speed"], "speed: one or more of install, correct"),
        (["correct", "--only", "decode"], "--only decode"),
        (["correct", "--weights", "no-such-folder"], "--weights no-such-folder"),
        (["mission", "--model", "70b"], "--model 70b: 7b or 13b"),
        (["correct", "--seed", "-1"], "--seed -1"),
        (["correct", "--resume", "no-such-file"], "no-such-file"),
    ],
)
def test_a_wrong_word_is_named_and_exits_2(words, named, tmp_path, capsys):
    assert main(["--dry-run", *words, "--out", str(tmp_path / "new")]) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_folder_for_the_results_is_asked_for(capsys):
    assert main(["correct", "--dry-run"]) == 2
    assert "--out" in capsys.readouterr().err


def test_results_that_are_there_already_are_not_overwritten(tmp_path, capsys):
    (tmp_path / runner.RESULT_FILE).write_text("kept")
    assert main(["correct", "--out", str(tmp_path), "--dry-run"]) == 2
    assert (tmp_path / runner.RESULT_FILE).read_text() == "kept"


def test_the_larger_model_is_asked_for_in_the_missions_options():
    options = {part.kind: part.options for part in all_parts("mission", model="13b") if part.kind not in ("warm",)}
    assert {options[kind]["model"] for kind in ("table1", "generations", "layer_peer")} == {"13b"}


def test_compute_sanitizer_is_found_beside_the_compiler(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "compute-sanitizer").touch()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(parts.shutil, "which", lambda name: None)
    found = [part for part in all_parts("correct") if part.group == "sanitizer"]
    assert len(found) == 2
    assert all(part.skip is None and part.prefix[0] == str(tmp_path / "bin" / "compute-sanitizer") for part in found)


# --- the mode of later parts --------------------------------------------------------------------------------------


def decoded(mode: str, status: str = "done", line: dict | None = None) -> dict:
    timings = [{"error": "no kernel"} if line is None else line]
    return {"group": "decode", "mode": mode, "status": status, "result": {"timings": timings}}


TIMED = {"seconds": [1.0]}


@pytest.mark.parametrize(
    ("done", "mode"),
    [
        ([], "cuda"),
        ([decoded("cuda", line=TIMED), decoded("triton", line=TIMED)], "cuda"),
        ([decoded("cuda", "failed"), decoded("triton", line=TIMED)], "triton"),
        ([decoded("cuda", "failed")], "triton"),
        ([decoded("cuda"), decoded("triton", "failed")], "reference"),
        ([decoded("cuda", "stopped", TIMED)], "cuda"),
    ],
)
def test_later_parts_take_the_best_mode_that_could_decode(done, mode, monkeypatch, tmp_path):
    (tmp_path / "pyprune").mkdir()
    (tmp_path / "pyprune" / "_cuda_0123456789ab.so").touch()
    monkeypatch.setattr(parts, "ROOT", tmp_path)
    assert best_mode(done) == mode


def test_without_the_cuda_library_triton_is_tried_first(monkeypatch, tmp_path):
    monkeypatch.setattr(parts, "ROOT", tmp_path)
    assert best_mode([]) == "triton"


def test_the_guide_tells_the_seconds_that_the_parts_add_up_to():
    guide = (parts.ROOT / "bench" / "gpu_check" / "README.md").read_text()
    for name in BUDGETS:
        [row] = [line for line in guide.splitlines() if line.startswith(f"| `{name}` |") and line.count("|") == 4]
        assert int(row.split("|")[3]) == expected_seconds(plan([name])), row
