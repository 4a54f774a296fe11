"""`pyprune tune`, as far as it goes without a GPU, and all of it with a machine that is made up."""

from __future__ import annotations

import contextlib
import json

import pytest
import torch

from pyprune import cli, triton_kernels

if not triton_kernels.available():
    pytest.skip(str(triton_kernels.why_not()), allow_module_level=True)

from pyprune.models import load
from pyprune.study import kernel_tuning, tuning_cases
from pyprune.triton_kernels import tuning
from pyprune.triton_kernels.configs import SM_90
from pyprune.triton_kernels.tuning import Machine

TINY = ["--model", "shape:tiny", "--dtype", "bf16"]


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = cli.main(["tune", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("words", [[], ["--device", "cuda:1"], ["--model", "shape:tiny", "--out", "new.json"]])
def test_without_a_gpu_one_line_says_so_and_nothing_is_written(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("pyprune: tune: no GPU that this torch can use")
    assert list(tmp_path.iterdir()) == []


def test_a_cpu_is_not_what_is_tuned(capsys):
    assert run(capsys, "--device", "cpu")[::2] == (
        2,
        "pyprune: --device cpu: tune times GPU kernels; cuda or cuda:N is expected\n",
    )


def time(runs) -> dict:
    """The second candidate is the quickest."""
    return {config: [2e-6 - (1e-6 if number == 1 else 0)] for number, config in enumerate(runs)}


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A GPU that gives the same for every configuration, with a timer that never changes its mind."""
    same = {"norm_qkv_rope": torch.ones(2), "decode_attention": torch.ones(3)}
    for name in tuning_cases.OPERATORS:
        monkeypatch.setitem(tuning_cases.OPERATORS, name, lambda *_, name=name, **__: same.get(name, torch.ones(1)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr("pyprune.commands.tune.chosen_device", lambda options: torch.device("cpu"))
    monkeypatch.setattr(kernel_tuning, "architecture", lambda device: SM_90)
    monkeypatch.setattr(kernel_tuning, "event_timer", lambda device: time)
    monkeypatch.setattr(tuning, "machine", lambda index: Machine("NVIDIA H100", 90, "3.7.1"))
    monkeypatch.setenv(tuning.VARIABLE, str(tmp_path / "cache" / "tuning.json"))
    # Caches are compared too: give what the operator would have written.
    monkeypatch.setattr(kernel_tuning, "agree", lambda result, expected: result.shape == expected.shape)
    return tmp_path


def test_what_is_found_is_written_whole_and_read_again(machine, capsys):
    code, out, err = run(capsys, *TINY)
    assert (code, err) == (0, "")
    file = machine / "cache" / "tuning.json"
    assert str(file) in out.replace("\n", "")
    entries = tuning.read(file)
    cases = tuning_cases.cases(load("shape:tiny", torch.bfloat16), SM_90)
    assert len(entries) == len(cases)
    assert {(key.operator, key.shape) for key in entries} == {(case.operator, case.shape) for case in cases}
    assert {(tuned.seconds, tuned.fixed_seconds) for tuned in entries.values()} == {(1e-6, 2e-6)}
    for case in cases:
        assert case.operator in out


@pytest.mark.parametrize("jobs", ["1", "3"])
def test_only_the_classes_of_rows_that_are_named_are_tuned_with_kernels_compiled_before(
    machine, capsys, monkeypatch, jobs
):
    ahead: list[tuple[int, int]] = []
    monkeypatch.setattr(
        kernel_tuning, "compile_ahead", lambda case, tiles, device, jobs: ahead.append((len(tiles), jobs))
    )
    assert run(capsys, *TINY, "--rows", "2,16", "--jobs", jobs)[0] == 0
    entries = tuning.read(machine / "cache" / "tuning.json")
    assert {key.shape.rows for key in entries if key.operator == "linear_residual"} == {2, 16}
    assert [jobs for _, jobs in ahead] == ([] if jobs == "1" else [3] * len(entries))
    assert all(configurations > 1 for configurations, _ in ahead)


def test_the_same_file_keeps_what_other_gpus_and_models_left_in_it(machine, capsys, monkeypatch):
    file = machine / "mine.json"
    assert run(capsys, *TINY, "--out", str(file))[0] == 0
    before = tuning.read(file)
    monkeypatch.setattr(tuning, "machine", lambda index: Machine("NVIDIA A100", 80, "3.7.1"))
    assert run(capsys, *TINY, "--out", str(file))[0] == 0
    both = tuning.read(file)
    assert len(both) == 2 * len(before)
    assert before.items() <= both.items()
    assert not (machine / "cache").exists()


def test_a_file_that_is_not_sound_is_reported_before_any_work_and_kept(machine, capsys, monkeypatch):
    file = machine / "mine.json"
    file.write_text("something else")
    monkeypatch.setattr(kernel_tuning, "tune", lambda *_: pytest.fail("it measured first"))
    code, _, err = run(capsys, *TINY, "--out", str(file))
    assert code == 2
    assert f"{file}: not JSON" in err
    assert file.read_text() == "something else"


def test_a_file_of_an_older_format_is_refused_before_any_work_and_kept(machine, capsys, monkeypatch):
    file = machine / "mine.json"
    file.write_text('{"format": "pyprune-tuning/1", "entries": []}')
    monkeypatch.setattr(kernel_tuning, "tune", lambda *_: pytest.fail("it measured first"))
    code, _, err = run(capsys, *TINY, "--out", str(file))
    assert (code, err.count("\n")) == (2, 1)
    assert f"{file}: is of the older format pyprune-tuning/1; remove it and run `pyprune tune` again" in err
    assert file.read_text() == '{"format": "pyprune-tuning/1", "entries": []}'


def test_an_interruption_leaves_the_old_file(machine, capsys, monkeypatch):
    file = machine / "mine.json"
    assert run(capsys, *TINY, "--out", str(file))[0] == 0
    before = file.read_bytes()

    def interrupted(runs) -> dict:
        raise KeyboardInterrupt

    monkeypatch.setattr(kernel_tuning, "event_timer", lambda device: interrupted)
    assert run(capsys, *TINY, "--out", str(file))[0] == 130
    assert file.read_bytes() == before
    assert list(machine.iterdir()) == [file]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--model", "shape:none"], "shape:none"),
        (["--out", "."], ".: is a directory"),
        (["--dtype", "int8"], "'int8'"),
        (["--rows", "1,3"], "'1,3': one or more of 1,2,16,32,64"),
        (["--rows", "2,2"], "'2,2': one or more"),
        (["--rows", ""], "one or more"),
        (["--jobs", "0"], "'0': an integer from 1"),
    ],
)
def test_bad_input_is_named_before_any_work(machine, capsys, monkeypatch, words, named):
    monkeypatch.setattr(kernel_tuning, "tune", lambda *_: pytest.fail("it measured first"))
    code, _, err = run(capsys, *words)
    assert code == 2
    assert named in err


def test_json_has_the_entries_and_why_others_were_not_timed(machine, capsys, monkeypatch):
    monkeypatch.setattr(kernel_tuning, "agree", lambda result, expected: result.shape != (3,))
    code, out, _ = run(capsys, *TINY, "--json")
    assert code == 0
    printed = json.loads(out)
    assert printed["model"] == "shape:tiny"
    assert printed["entries"] == tuning.to_json(tuning.read(printed["file"]))["entries"]
    assert {reason["operator"] for reason in printed["refused"]} == {"decode_attention"}
    assert {reason["why"] for reason in printed["refused"]} == {"its result differs from the fixed configuration's"}
