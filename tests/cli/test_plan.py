"""The command `plan`: its figures, its JSON, and what it refuses."""

from __future__ import annotations

import argparse
import json
import shlex

import pytest
import torch

from pyprune import plan_memory
from pyprune.cli import build_parser
from pyprune.runtime import memory
from tests.cli import command_line
from tests.cli.command_line import TINY


def run(capsys, *words: object) -> tuple[int, str, str]:
    return command_line.run(capsys, "plan", *words)


def parser() -> argparse.ArgumentParser:
    return build_parser()._subparsers._group_actions[0].choices["plan"]


def test_every_option_is_explained_with_its_default():
    for action in parser()._actions:
        assert action.help
        if action.option_strings and not isinstance(action, argparse._HelpAction):
            assert "default" in action.help or "required" in action.help, action.option_strings


def test_the_examples_can_be_pasted():
    examples = [line.strip() for line in parser().epilog.splitlines()[1:]]
    assert len(examples) == 3
    for example in examples:
        assert build_parser().parse_args(shlex.split(example)[1:]).command == "plan"


def test_json_has_every_plan_in_bytes(capsys):
    code, out, err = run(
        capsys, TINY, "--memory", "--batch", "1,16", "--len", "140,524", "--skip", "1", "--skip-ffn", "2,3",
        "--dtype", "bf16", "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    data = json.loads(out)
    assert set(data) == {
        "model", "device", "dtype", "parameters", "skip", "weight_format", "available_memory_bytes", "plans",
    }  # fmt: skip
    assert data["device"] == "cpu"
    assert (data["model"], data["dtype"]) == (TINY, "bfloat16")
    assert data["skip"] == {"blocks": [1], "mha": [], "ffn": [2, 3]}
    assert [(plan["batch"], plan["len"]) for plan in data["plans"]] == [(1, 140), (1, 524), (16, 140), (16, 524)]
    for plan in data["plans"]:
        expected = plan_memory(TINY, plan["batch"], plan["len"], "bf16", data["skip"])
        assert plan == {"batch": plan["batch"], "len": plan["len"], **expected.to_dict()}
        assert plan["total"] == plan["weights"] + plan["cache"] + plan["workspace"]
        assert plan["untouched"] == plan["cache"] // 4


def test_the_table_shows_gibibytes_and_whether_they_fit(capsys, monkeypatch):
    figures = plan_memory("shape:llama-7b", 16, 524, "fp16")
    for free, fits in ((figures.total, "yes"), (figures.total - 1, "no"), (None, "unknown")):
        monkeypatch.setattr(memory, "available", lambda device="cpu", free=free: free)
        code, out, err = run(capsys, "shape:llama-7b", "--memory", "--batch", "16", "--len", "524", "--dtype", "fp16")
        assert (code, err) == (0, "")
        row = next(line for line in out.splitlines() if " 524 " in line).split()
        sizes = (figures.weights, figures.cache, figures.workspace, figures.total)
        assert row == ["16", "524", *(f"{size / 2**30:.3f}" for size in sizes), fits]


def test_a_gpu_is_planned_for_with_the_rows_that_it_has(capsys):
    odd = "shape:tiny,ffn=101"
    code, out, err = run(capsys, odd, "--memory", "--len", "50", "--dtype", "bf16", "--device", "cuda", "--json")
    assert (code, err) == (0, "")
    data = json.loads(out)
    [planned] = data["plans"]
    assert data["device"] == "cuda"
    expected = plan_memory(odd, 1, 50, "bf16", device="cuda")
    assert planned == {"batch": 1, "len": 50, **expected.to_dict()}
    assert expected.weights > plan_memory(odd, 1, 50, "bf16").weights
    if not torch.cuda.is_available():
        assert data["available_memory_bytes"] is None


def test_what_a_skip_leaves_unused_has_a_column_of_its_own(capsys):
    assert "used" not in run(capsys, TINY, "--memory")[1]
    assert "used" in run(capsys, TINY, "--memory", "--skip", "1")[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "MODEL"),
        ([TINY], "--memory is expected"),
        (["no/such/model", "--memory"], "no/such/model"),
        (["shape:llama-8b", "--memory"], "llama-8b"),
        ([TINY, "--memory", "--batch", "0"], "batch 0: 1 to 256"),
        ([TINY, "--memory", "--batch", "257"], "batch 257: 1 to 256"),
        ([TINY, "--memory", "--batch", "1,x"], "'1,x': batch sizes"),
        ([TINY, "--memory", "--len", "0"], "length 0: 1 to 2048"),
        ([TINY, "--memory", "--len", "4096"], "length 4096: 1 to 2048"),
        ([TINY, "--memory", "--len", "-1"], "--len"),
        ([TINY, "--memory", "--skip", "4"], "block 4 does not exist"),
        ([TINY, "--memory", "--skip", "0,1,2,3"], "all 4 blocks"),
        ([TINY, "--memory", "--skip-mha", "a"], "'a'"),
        ([TINY, "--memory", "--dtype", "int8"], "'int8'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, words, message):
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("pyprune: ")
    assert err.count("\n") == 1


def test_compressed_weights_are_planned_and_only_bfloat16_has_them(capsys):
    words = [TINY, "--memory", "--len", "64", "--json"]
    code, out, _ = run(capsys, *words, "--dtype", "bf16", "--weight-format", "bf16-lossless12")
    given = json.loads(out)
    assert (code, given["weight_format"]) == (0, "bf16-lossless12")
    assert given["plans"][0]["weights"] == plan_memory(TINY, 1, 64, "bf16", weight_format="bf16-lossless12").weights
    code, out, _ = run(capsys, TINY, "--memory", "--len", "64", "--dtype", "bf16", "--weight-format", "bf16-lossless12")
    assert "bfloat16 (bf16-lossless12)" in out
    code, _, err = run(capsys, *words, "--dtype", "fp16", "--weight-format", "bf16-lossless12")
    assert code == 2
    assert "weight_format bf16-lossless12" in err
    assert "float16" in err
