"""A later machine goes on from the files of the last."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bench.gpu_check import resume
from bench.gpu_check.parts import Part
from bench.gpu_check.resume import FORMAT, code_digest, earlier, this_machine
from bench.gpu_check.runner import RESULT_FILE, Check
from bench.gpu_check.settings import Settings
from bench.gpu_check.summary import summary
from pyprune.errors import InputError

HERE = {"id": "second", "commit": "bbb", "code": "same"}


def scripted(name: str, text: str = "pass", **options) -> Part:
    code = (
        "import json, os, sys\ntold = json.loads(sys.argv[-1])\n"
        f"{text}\n"
        "json.dump({'complete': True, 'error': None, 'result': {'bandwidth': 1.0, 'gemm_flops': 1.0}},"
        " open(told['out'], 'w'))"
    )
    return Part(name, name, 30.0, prefix=(sys.executable, "-c", code), gpu=False, **options)


def run(folder: Path, machine: dict, stages: list[list[Part]], files=(), again=()) -> tuple[dict, list[str]]:
    """The results and the names of the parts that ran."""
    told: list[str] = []
    known = earlier([str(file) for file in files], machine, False, force=False)
    folder.mkdir()
    check = Check(folder, Settings("", ""), 60.0, lambda: True, told.append, machine, known, again)
    results = check.run(stages)
    assert json.loads((folder / RESULT_FILE).read_text()) == results
    return results, [line.removesuffix(" ...") for line in told if line.endswith(" ...")]


def first_machine() -> dict:
    return {**HERE, "id": "first"}


def test_a_second_machine_runs_what_is_left_and_each_part_says_which_machine_ran_it(tmp_path):
    broken = scripted("b", "sys.exit('no luck')")
    _, ran = run(tmp_path / "one", first_machine(), [[scripted("install", everywhere=True)], [scripted("a")], [broken]])
    assert ran == ["install", "a", "b"]
    stages = [[scripted("install", everywhere=True)], [scripted("a")], [scripted("b")], [scripted("c")]]
    results, ran = run(tmp_path / "two", HERE, stages, [tmp_path / "one" / RESULT_FILE])
    assert ran == ["install", "b", "c"]
    assert [machine["id"] for machine in results["machines"]] == ["first", "second"]
    found = {(part["name"], part["machine"]): part["status"] for part in results["parts"]}
    assert found == {(n, m): "done" for n, m in (("install", 0), ("install", 1), ("a", 0), ("b", 1), ("c", 1))}
    # A third call on the second machine has nothing left to do.
    assert run(tmp_path / "three", HERE, stages, [tmp_path / "two" / RESULT_FILE])[1] == []


def test_a_part_named_again_runs_again(tmp_path):
    run(tmp_path / "one", first_machine(), [[scripted("a")], [scripted("b")]])
    stages = [[scripted("a")], [scripted("b")]]
    assert run(tmp_path / "two", HERE, stages, [tmp_path / "one" / RESULT_FILE], again=["b"])[1] == ["b"]


def test_a_part_for_which_no_time_was_left_does_not_hide_what_it_had_before(tmp_path):
    run(tmp_path / "one", first_machine(), [[scripted("a", "sys.exit('broken')")]])
    results, _ = run(tmp_path / "two", HERE, [[scripted("a", skip="no time")]], [tmp_path / "one" / RESULT_FILE])
    assert [(part["status"], part["machine"]) for part in results["parts"]] == [("failed", 0)]


def test_ceilings_of_another_machine_are_not_this_ones(tmp_path):
    run(tmp_path / "one", first_machine(), [[scripted("ceilings", everywhere=True)]])
    known = earlier([str(tmp_path / "one" / RESULT_FILE)], HERE, False, force=False)
    (tmp_path / "two").mkdir()
    check = Check(tmp_path / "two", Settings("", ""), 60.0, lambda: True, print, HERE, known)
    assert check._ceiling("bandwidth") is None
    check.machine = 0
    assert check._ceiling("bandwidth") == 1.0


def test_several_files_are_joined(tmp_path):
    run(tmp_path / "one", first_machine(), [[scripted("a")]])
    run(tmp_path / "two", HERE, [[scripted("b")]])
    files = [tmp_path / name / RESULT_FILE for name in ("one", "two")]
    results, ran = run(tmp_path / "three", {**HERE, "id": "third"}, [[scripted(n)] for n in "abc"], files)
    assert ran == ["c"]
    assert [(part["name"], part["machine"]) for part in results["parts"]] == [("a", 0), ("b", 1), ("c", 2)]
    assert "on machine 3" in summary(results)


def test_a_file_of_other_code_is_refused_by_name_unless_forced(tmp_path):
    run(tmp_path / "one", {**first_machine(), "code": "other", "commit": "aaa"}, [[scripted("a")]])
    file = str(tmp_path / "one" / RESULT_FILE)
    with pytest.raises(InputError, match=r"one/gpu_check.json: was made by other code \(commit aaa, here bbb\)"):
        earlier([file], HERE, False, force=False)
    assert earlier([file], HERE, False, force=True).machines[0]["code"] == "other"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "x.json"),
        ("[1]", "its format is 'list'"),
        ('{"format": "pyprune-gpu-check/1"}', "its format is 'pyprune-gpu-check/1'"),
        (json.dumps({"format": FORMAT, "dry_run": True, "machines": [], "parts": []}), "dry run"),
    ],
)
def test_a_file_that_is_no_result_of_this_is_refused(text, named, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=named):
        earlier([str(tmp_path / "x.json")], HERE, False, force=True)


def test_the_code_is_known_without_git_and_a_changed_kernel_changes_it(tmp_path):
    for folder in resume.CODE:
        (tmp_path / folder).mkdir(parents=True)
    kernel = tmp_path / "csrc" / "kernel.cu"
    kernel.write_text("one")
    before = code_digest(tmp_path)
    (tmp_path / "csrc" / "notes.md").write_text("no code")
    assert code_digest(tmp_path) == before
    kernel.write_text("two")
    assert code_digest(tmp_path) != before


def test_a_machine_is_the_same_until_it_starts_again():
    assert this_machine("a")["id"] == this_machine("b")["id"]
