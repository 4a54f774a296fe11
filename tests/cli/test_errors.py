"""Exit codes, errors of one line, and nothing half-written."""

from __future__ import annotations

import errno
import shlex
import subprocess
import sys

import pytest

from tests.cli.command_line import FEW, TINY, run

BAD_INPUT = [
    ([], "no command: doctor, score"),
    (["scores", TINY], "'scores'"),
    (["score"], "MODEL"),
    (["score", TINY, "--sed", "1"], "--sed"),
    (["score", TINY, "--unit", "layer"], "'layer'"),
    (["score", TINY, "--samples", "0"], "--samples: '0'"),
    (["score", TINY, "--seq-len", "1"], "--seq-len: '1'"),
    (["score", TINY, "--seed", "-3"], "--seed: '-3'"),
    (["score", TINY, "--seed", "x"], "--seed: 'x'"),
    (["score", TINY, "--dtype", "int8"], "'int8'"),
    (["score", "no/such/model/here"], "no/such/model/here"),
    (["score", TINY, "--text", "no-such.txt"], "no-such.txt"),
    (["score", TINY, "--device", "gpu"], "'gpu': cpu, cuda or cuda:N"),
    (["score", TINY, "--device", "cuda:99"], "device cuda:99: cannot be used"),
    (["score", TINY, "--out", "."], ".: is a directory"),
    (["score", TINY, "--out", "taken.txt/scores.json"], "taken.txt is a file"),
    (["prune", TINY, "--out", "new"], "--depth --blocks --width"),
    (["prune", TINY, "--depth", "1"], "--out"),
    (["prune", TINY, "--depth", "1", "--width", "20%", "--out", "new"], "not allowed with"),
    (["prune", TINY, "--depth", "120%", "--out", "new"], "'120%'"),
    (["prune", TINY, "--depth", "0", "--out", "new"], "0"),
    (["prune", TINY, "--depth", "9", "--out", "new"], "count 9: 1 to 4"),
    (["prune", TINY, "--depth", "4", "--out", "new"], "at least one must stay"),
    (["prune", TINY, "--depth", "1%", "--out", "new"], "ratio 0.01"),
    (["prune", TINY, "--depth", "1", "--protect", "middle=1", "--out", "new"], "'middle=1'"),
    (["prune", TINY, "--depth", "1", "--protect", "first=4", "--out", "new"], "'first=4'"),
    (["prune", TINY, "--depth", "1", "--scores", "no.json", "--out", "new"], "no.json"),
    (["prune", TINY, "--depth", "1", "--scores", "taken.txt", "--out", "new"], "taken.txt"),
    (["prune", TINY, "--blocks", "1,x", "--out", "new"], "'1,x'"),
    (["prune", TINY, "--blocks", "4", "--out", "new"], "0 to 3"),
    (["prune", TINY, "--blocks", "1,1", "--out", "new"], "1 twice"),
    (["prune", TINY, "--blocks", "1", "--protect", "0", "--out", "new"], "--protect 0: needs --depth"),
    (["prune", TINY, "--width", "3", "--out", "new"], "--width 3"),
    (["prune", TINY, "--width", "20%", "--unit", "mha", "--out", "new"], "--unit mha"),
    (["prune", TINY, "--width", "20%", "--method", "magic", "--out", "new"], "method 'magic'"),
    (["prune", TINY, "--width", "20%", "--method", "flap", "--variant", "x", "--out", "new"], "variant 'x'"),
    (["prune", TINY, "--width", "20%", "--method", "magnitude-sp", "--text", "f", "--out", "new"], "--text f"),
    (["prune", TINY, "--width", "20%", "--remove-groups", "2", "--out", "new"], "remove_groups 2"),
    (["prune", TINY, "--depth", "1", "--method", "flap", "--out", "new"], "--method flap"),
    (["prune", TINY, "--depth", "1", "--remove-groups", "2", "--out", "new"], "--remove-groups 2"),
    (["prune", TINY, "--blocks", "1", "--variant", "x", "--out", "new"], "--variant x"),
    (["prune", TINY, "--width", "20%", "--pad-to", "0", "--out", "new"], "--pad-to: '0'"),
    (["prune", TINY, "--depth", "1", "--out", "taken.txt"], "taken.txt: is a file"),
    (["prune", TINY, "--depth", "1", "--out", "."], ".: is a directory that is not empty"),
    (["compare", TINY, "--ratios", "20%,20%"], "20%, 20%"),
    (["compare", TINY, "--ratios", "a lot"], "'a lot'"),
    (["compare", TINY, "--batch", "1,-8"], "'1,-8'"),
    (["compare", TINY, "--batch", "4096"], "batch 4096"),
    (["compare", TINY, "--protocol", "long"], "'long'"),
    (["compare", TINY, "--pad-to", "1"], "--pad-to: '1'"),
    (["compare", TINY, "--out", "taken.txt"], "taken.txt: is a file"),
    (["compare", TINY, "--eval-text", "no-such.txt"], "no-such.txt"),
    (["compare", TINY, "--device", "cuda:99"], "accepted here: cpu"),
    (["compare", TINY, "--batch", "257"], "batch 257: 1 to 256"),
    (["compare", TINY, "--with", "mine"], "'mine': NAME=DIR"),
    (["compare", TINY, "--with", "=taken.txt"], "'=taken.txt': NAME=DIR"),
    (["compare", TINY, "--with", "mine=no-such-dir/x"], "--with mine: no-such-dir/x: no such"),
    (["compare", TINY, "--with", "mine=taken.txt"], "--with mine: taken.txt"),
    (["compare", TINY, "--with", "a=shape:tiny", "--with", "a=shape:tiny"], "a, a"),
    (["compare", TINY, "--criterion", "guess"], "'guess' given; ppl"),
    (["compare", TINY, "--depth-criteria", "ppl,guess+"], "'guess' given; ppl"),
    (["compare", TINY, "--protect", "middle=1"], "'middle=1'"),
    (["compare", TINY, "--search", "window", "--unit", "mha"], "a window is of blocks"),
    (["compare", TINY, "--tasks", "boolq", "--limit", "0"], "--limit: '0'"),
    (["compare", TINY, "--limit", "5"], "limit 5: belongs to tasks"),
    (["compare", TINY, "--resume"], "--resume: finished work is kept beside --out"),
    (["generate", "smollm2-135m"], "--prompt TEXT"),
    (["generate", TINY, "--prompt", "words"], "'words'"),
    (["generate", TINY, "--max-new-tokens", "0"], "--max-new-tokens: '0'"),
    (["generate", TINY, "--skip", "4"], "0 to 3"),
    (["generate", TINY, "--skip", "0,1,2,3"], "at least one must stay"),
    (["generate", TINY, "--temperature", "-1"], "--temperature: '-1'"),
    (["generate", TINY, "--temperature", "nan"], "--temperature: 'nan'"),
    (["generate", TINY, "--top-p", "0"], "--top-p: '0'"),
    (["generate", TINY, "--top-k", "0"], "--top-k: '0'"),
    (["generate", TINY, "--min-p", "1.5"], "--min-p: '1.5'"),
    (["generate", TINY, "--repetition-penalty", "0"], "--repetition-penalty: '0'"),
    (["generate", TINY, "--top-k", "3"], "--top-k 3: has no effect at temperature 0"),
    (["generate", TINY, "--top-p", "0.5", "--temperature", "0"], "--top-p 0.5: has no effect"),
    (["generate", TINY, "--min-p", "0.5"], "--min-p 0.5: has no effect"),
    (["generate", TINY, "--seed", str(2**63)], f"--seed: '{2**63}': an integer from 0 to {2**63 - 1}"),
    (["generate", TINY, "--prefill-chunk", "0"], "--prefill-chunk: '0'"),
    (
        ["generate", TINY, "--dtype", "fp16", "--weight-format", "bf16-lossless12"],
        "weight_format bf16-lossless12: shape:tiny has float16 weights",
    ),
    (["generate", TINY, "--logprobs"], "--logprobs: belongs to --json"),
    (["generate", TINY, "--stream", "--json"], "--stream: prints text as it comes and does not go with --json"),
    (["generate", "smollm2-135m", "--prompt", "a", "--prompt", ""], "--prompt ''"),
    (["generate", "smollm2-135m", "--prompt", "a", "--prompt", "b", "--stream"], "2 were given"),
    (["generate", TINY, "--pruning", "no.json"], "no.json"),
    (["generate", TINY, "--pruning", "taken.txt"], "taken.txt"),
    (["generate", TINY, "--max-new-tokens", "2048"], "room for at most 2036"),
    (["generate", TINY, "--device", "cuda:-1"], "'cuda:-1'"),
    (["generate", TINY, "--device", "cuda:99"], "device cuda:99: cannot be used"),
]


@pytest.mark.parametrize(
    ("words", "named"), BAD_INPUT, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_bad_input_is_one_line_that_names_it_and_exit_code_2(words, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.txt").write_text("taken")

    def too_late(*_: object, **__: object) -> None:
        raise AssertionError("scoring began before the input was checked")

    monkeypatch.setattr("pyprune.scoring.score", too_late)
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith("pyprune: ")
    assert err.count("\n") == 1
    assert named in err
    assert [path.name for path in tmp_path.iterdir()] == ["taken.txt"]


def test_a_line_break_in_a_value_does_not_break_the_error_line(capsys):
    code, _, err = run(capsys, "score", "shape:two\nlines")
    assert code == 2
    assert err.count("\n") == 1


def test_an_interrupt_exits_130_and_leaves_no_file(capsys, tmp_path, failing):
    failing(KeyboardInterrupt())
    code, _, err = run(capsys, "score", TINY, *FEW, "--out", str(tmp_path / "scores.json"))
    assert (code, err) == (130, "pyprune: interrupted\n")
    code, _, _ = run(capsys, "prune", TINY, *FEW, "--depth", "1", "--out", str(tmp_path / "pruned"))
    assert code == 130
    assert not list(tmp_path.iterdir())


def test_an_interrupt_while_a_checkpoint_is_written_leaves_nothing(capsys, tmp_path, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", interrupted)
    monkeypatch.setattr("pyprune.models.checkpoints.save_file", interrupted, raising=False)
    code, _, _ = run(capsys, "prune", TINY, "--blocks", "1", "--out", str(tmp_path / "pruned"))
    assert code == 130
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line_and_exit_code_1(capsys, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "scores.json")

    monkeypatch.setattr("pyprune.scoring.scores.write_json", full)
    code, _, err = run(capsys, "score", TINY, *FEW, "--out", str(tmp_path / "scores.json"))
    assert code == 1
    assert err.startswith("pyprune: the disk is full: no space left for scores.json")
    assert err.count("\n") == 1


def test_an_unforeseen_error_is_one_line_without_debug_and_a_traceback_with_it(capsys, failing):
    failing(RuntimeError("first\nsecond"))
    code, _, err = run(capsys, "score", TINY, *FEW)
    assert code == 1
    assert err == "pyprune: RuntimeError: first second (--debug shows the traceback)\n"
    code, _, err = run(capsys, "score", TINY, *FEW, "--debug")
    assert code == 1
    assert "Traceback (most recent call last)" in err
    assert err.endswith("pyprune: RuntimeError: first second\n")


def test_an_error_without_words_is_named_by_its_kind(capsys, failing):
    failing(MemoryError())
    assert run(capsys, "score", TINY, *FEW)[2].startswith("pyprune: MemoryError (")


def test_a_reader_that_leaves_early_is_no_error_message():
    command = f"{shlex.quote(sys.executable)} -m pyprune compare --help | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""
