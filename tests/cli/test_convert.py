"""`pyprune convert`: what it writes, what it refuses, and that nothing is half-written."""

from __future__ import annotations

import json

import pytest
import torch

import pyprune
from pyprune.pruning import Pruning, apply
from tests.cli import command_line

TINY = "shape:hidden=24,blocks=3,heads=4,kv_heads=2,head_dim=6,ffn=20,vocab=40"


@pytest.fixture
def ragged(tmp_path):
    """A directory with a pruned model whose blocks differ."""
    pruned = apply(pyprune.load(TINY), Pruning(mha=[1], neurons={2: [3]}))
    pruned.save(tmp_path / "ragged")
    return tmp_path / "ragged"


def run(capsys, *words: object) -> tuple[int, str, str]:
    return command_line.run(capsys, "convert", *words)


def same(one, other):
    ours, theirs = dict(one.tensors()), dict(other.tensors())
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(("dtype", "shown"), [(None, "float32"), ("f16", "float16"), ("bf16", "bfloat16")])
def test_gguf_and_back(capsys, ragged, tmp_path, dtype, shown):
    file, again = tmp_path / "model.gguf", tmp_path / "again"
    asked = [] if dtype is None else ["--dtype", dtype]
    code, out, _ = run(capsys, ragged, "--to", "gguf", "--out", file, *asked, "--json")
    found = json.loads(out)
    assert (code, found["architecture"], found["dtype"], found["blocks"]) == (0, "deci", shown, 3)
    assert found["bytes"] == file.stat().st_size
    assert same(pyprune.load(file), pyprune.load(ragged, dtype=shown))
    code, out, _ = run(capsys, file, "--to", "hf", "--out", again)
    assert (code, "pyprune_llama" in out) == (0, True)
    assert same(pyprune.load(again), pyprune.load(file))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "gguf", "--out", "model"], "--out model: a name that ends in .gguf is expected"),
        (["--to", "hf", "--out", "new", "--no-tokenizer"], "--no-tokenizer: belongs to --to gguf"),
        (["--to", "onnx", "--out", "new"], "invalid choice: 'onnx'"),
        (["--to", "gguf"], "--out"),
        (["--to", "gguf", "--out", "m.gguf", "--dtype", "q4"], "'q4': float32, fp32, f32, bfloat16, bf16"),
    ],
)
def test_bad_options_are_told_in_one_line(capsys, monkeypatch, tmp_path, words, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, TINY, *words)
    assert (code, message in err, err.count("\n")) == (2, True, 1)
    assert not list(tmp_path.iterdir())


def test_what_gguf_cannot_express_is_refused_and_an_old_file_stays(capsys, tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"old")
    code, _, err = run(capsys, f"{TINY},family=mistral,window=8", "--to", "gguf", "--out", file)
    assert (code, "window of 8" in err) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    assert file.read_bytes() == b"old"
