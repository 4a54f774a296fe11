"""`pyprune export`: a pruning of a checkpoint, read where prune leaves it, in a file or on standard output."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from pyprune import load
from pyprune.commands import export
from pyprune.pruning import Pruning, apply
from pyprune.pruning.export import FORMATS
from tests.cli.command_line import run


@pytest.fixture
def pruning(tmp_path):
    path = tmp_path / "mine.json"
    Pruning(model="org/model", blocks=(1, 2)).to_json(path)
    return path


def test_the_tools_in_the_help_are_those_that_can_be_written():
    assert tuple(FORMATS) == export.TOOLS


def test_a_list_goes_to_standard_output_or_to_a_file(capsys, pruning, tmp_path):
    code, out, _ = run(capsys, "export", pruning, "--to", "modelopt")
    assert (code, json.loads(out)) == (0, {"layers_to_drop": [2, 3]})
    code, nothing, _ = run(capsys, "export", pruning, "--to", "modelopt", "--out", tmp_path / "new" / "list.json")
    assert (code, nothing) == (0, "")
    assert (tmp_path / "new" / "list.json").read_text("utf-8") == out


def test_plain_json_brings_what_is_added_to_biases_along_or_says_that_it_cannot(capsys, tmp_path):
    (tmp_path / "made").mkdir()
    added = {"blocks.1.o.bias": torch.tensor([0.5, -2.0])}
    Pruning(blocks=(2,), compensation=added).to_json(tmp_path / "made" / "pruning.json")
    out = tmp_path / "new" / "mine.json"
    assert run(capsys, "export", tmp_path / "made", "--to", "json", "--out", out, "--model", "org/model")[0] == 0
    read = Pruning.from_json(out)
    assert (read.model, read.blocks) == ("org/model", (2,))
    assert torch.equal(read.compensation["blocks.1.o.bias"], added["blocks.1.o.bias"])

    code, nothing, err = run(capsys, "export", tmp_path / "made", "--to", "json")
    assert (code, nothing) == (2, "")
    assert "the values added to blocks.1.o.bias are not part of the text; a file to write (--out FILE)" in err
    (tmp_path / "made" / "compensation.safetensors").unlink()
    code, nothing, err = run(capsys, "export", tmp_path / "made", "--to", "json", "--out", tmp_path / "lost.json")
    assert code == 2
    assert "the values added to blocks.1.o.bias" in err
    assert not (tmp_path / "lost.json").exists()
    words = ["--to", "json", "--layers", "2", "--out", tmp_path / "short.json"]
    assert "names block 2; 0 to 1" in run(capsys, "export", tmp_path / "made", *words)[2]


def test_plain_json_is_the_same_in_a_file_and_on_standard_output(capsys, pruning, tmp_path):
    _, text, _ = run(capsys, "export", pruning, "--to", "json")
    run(capsys, "export", pruning, "--to", "json", "--out", tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text("utf-8") == text == pruning.read_text("utf-8")


def test_mergekit_reads_the_number_of_layers_from_the_original_model(capsys, tmp_path):
    original, pruned = tmp_path / "original", tmp_path / "pruned"
    decoder = load("shape:hidden=16,blocks=5,heads=2,kv_heads=1,head_dim=8,ffn=24,vocab=31")
    decoder.save(original)
    apply(load(str(original)), Pruning(blocks=(0, 3))).save(pruned)
    for model in (original, pruned):  # a pruned checkpoint knows what it was made from
        code, out, _ = run(capsys, "export", pruned, "--to", "mergekit", "--model", model)
        assert code == 0
        assert [part["sources"][0]["layer_range"] for part in yaml.safe_load(out)["slices"]] == [[1, 3], [4, 5]]


def test_mergekit_needs_no_model_at_hand_where_the_layers_are_given(capsys, pruning):
    code, out, _ = run(capsys, "export", pruning, "--to", "mergekit", "--model", "org/far-away", "--layers", "4")
    assert code == 0
    assert [part["sources"][0]["layer_range"] for part in yaml.safe_load(out)["slices"]] == [[0, 1], [3, 4]]


def test_mergekit_takes_models_of_families_that_pyprune_does_not_read(capsys, pruning, tmp_path):
    words = ["export", pruning, "--to", "mergekit", "--model", tmp_path]
    (tmp_path / "config.json").write_text('{"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"]}')
    code, out, err = run(capsys, *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "With --layers N, its number of blocks, it is not looked at" in err
    assert run(capsys, *words, "--layers", "4")[0] == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--to", "onnx"], "'onnx'"),
        ([], "--to"),
        (["--to", "mergekit"], "--model is expected"),
        (["--to", "mergekit", "--model", "smollm2-135m"], "mergekit reads Hugging Face checkpoints"),
        (["--to", "mergekit", "--model", "a.gguf", "--layers", "4"], "mergekit reads Hugging Face checkpoints"),
        (["--to", "mergekit", "--model", "org/m", "--layers", "2"], "names block 2; 0 to 1"),
        (["--to", "optipfair", "--out", "."], ".: is a directory"),
    ],
)
def test_bad_input_is_one_line_and_code_2(capsys, pruning, words, told):
    code, out, err = run(capsys, "export", pruning, *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert told in err
    assert run(capsys, "export", pruning.parent / "none.json", "--to", "json")[0] == 2
