"""`pyprune pad`, `advise-width` and `sweep` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import pyprune
from pyprune.study import linears, width_advice
from pyprune.study.width_advice import Advice, candidates
from tests.cli.command_line import run
from tests.runtime.test_accelerate import ids, small_model


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(linears, "POOL_BYTES", 1 << 16)
    monkeypatch.setenv("PYPRUNE_WIDTHS", str(tmp_path / "cache" / "widths.json"))


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A checkpoint of FFN width 71 as another tool leaves it: no pruning.json."""
    small_model("llama with biases").save_pretrained(tmp_path / "odd")
    return tmp_path / "odd"


def test_a_padded_checkpoint_of_another_tool_is_the_same_function_and_comes_back_exactly(odd, tmp_path, capsys):
    code, out, _ = run(capsys, "pad", str(odd), "--multiple", "16", "--out", str(tmp_path / "padded"), "--json")
    told = json.loads(out)
    assert code == 0
    assert told["widths"] == {"before": [71], "after": [80]}
    assert told["parameters"]["after"] - told["parameters"]["before"] == 3 * 9 * (3 * 48 + 2)
    before, after = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (odd, tmp_path / "padded"))
    assert after.config.intermediate_size == 80
    names = {name: tensor for name, tensor in after.state_dict().items()}
    for name, tensor in before.state_dict().items():
        kept = names[name]
        for axis, size in enumerate(tensor.shape):
            assert not kept.narrow(axis, size, kept.shape[axis] - size).any()
            kept = kept.narrow(axis, 0, size)
        assert torch.equal(kept, tensor), name
    with torch.no_grad():
        double = [model.double()(ids(2, 9)).logits for model in (before, after)]
    torch.testing.assert_close(*double, rtol=1e-13, atol=1e-13)
    code, _, _ = run(capsys, "pad", str(tmp_path / "padded"), "--multiple", "1", "--out", str(tmp_path / "back"))
    assert code == 0
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "back").state_dict()
    first = AutoModelForCausalLM.from_pretrained(odd).state_dict()
    assert back.keys() == first.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in first.items())


def test_auto_takes_the_multiple_that_was_measured(odd, tmp_path, capsys, monkeypatch):
    asked = []

    def measured(question, *rest) -> Advice:
        asked.append(question)
        return Advice(question, times(question, quick=80))

    monkeypatch.setattr(width_advice, "_measured", measured)
    for out in ("one", "two"):
        code, text, _ = run(capsys, "pad", str(odd), "--rows", "2,1", "--out", str(tmp_path / out))
        assert code == 0
        assert "multiple of 16" in text
        assert pyprune.load(str(tmp_path / out)).blocks[0].ffn.width == 80
    (question,) = asked
    assert (question.width, question.hidden, question.dtype, question.rows) == (71, 48, "float32", (1, 2))


def times(question, quick: int) -> dict:
    return {
        side: {
            rows: {w: [0.5 if w == quick else 1.0] * 9 for w in candidates(question.width)} for rows in question.rows
        }
        for side in (linears.TORCH, linears.OURS)
    }


def test_padding_has_no_effect_before_its_options_are_known_to_be_good(odd, tmp_path, capsys):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    for words, message in (
        (["--multiple", "0"], "auto or a whole number"),
        (["--multiple", "many"], "'many': auto or a whole number"),
        (["--out", str(tmp_path / "taken")], "not empty"),
        (["--device", "cuda:7"], "cuda"),
        (["--multiple", "64", "--rows", "1,16"], "--rows 1,16: needs --multiple auto"),
    ):
        given = ["pad", str(odd), "--out", str(tmp_path / "new"), *words]
        code, out, err = run(capsys, *given)
        assert (code, out) == (2, "")
        assert message in err
        assert not (tmp_path / "new").exists()


def test_advice_says_what_to_round_to_and_what_it_costs(capsys, monkeypatch):
    monkeypatch.setattr(width_advice, "_measured", lambda q, *rest: Advice(q, times(q, quick=8640)))
    code, out, _ = run(capsys, "advise-width", "8577", "--rows", "1,4")
    assert code == 0
    assert "8640 *" in out
    assert "Round 8577 to 8640 (* above; pyprune pad --multiple 64)." in " ".join(out.split())
    assert "2.00 (2.00 to 2.00)" in out
    assert max(map(len, out.splitlines()[:-1])) <= 100
    code, out, _ = run(capsys, "advise-width", "8577", "--rows", "1,4", "--json")
    told = json.loads(out)
    assert (told["best"], told["multiple"]) == (8640, 64)
    assert told["choices"][4]["parameters"] == 3 * 4096 * 63


def test_advice_measures_here_and_a_width_without_a_quicker_multiple_is_left(capsys, monkeypatch):
    code, out, _ = run(capsys, "advise-width", "17", "--hidden", "8", "--rows", "1", "--dtype", "fp32")
    assert code == 0
    assert "FFN 17 x 8 in float32" in out
    monkeypatch.setattr(width_advice, "_measured", lambda q, *rest: Advice(q, times(q, quick=0)))
    _, out, _ = run(capsys, "advise-width", "18", "--hidden", "8", "--rows", "1", "--dtype", "fp32")
    assert "Leave 18 as it is" in out


def test_a_sweep_is_told_and_written(tmp_path, capsys):
    words = ["sweep", "--widths", "20:24:2", "--hidden", "16", "--rows", "1,3", "--dtype", "fp32", "--rounds", "2"]
    code, out, _ = run(capsys, *words, "--out", str(tmp_path / "out"))
    assert code == 0
    assert "Widths 20 to 24 by 2" in out
    assert (tmp_path / "out" / "sweep.png").exists()
    code, out, _ = run(capsys, *words, "--json")
    told = json.loads(out)
    assert len(told["table"]) == 3 * 2 * 2 * 3
    assert told["command"].startswith("pyprune sweep --widths 20:24:2 --hidden 16 --rows 1,3 --dtype fp32")


@pytest.mark.parametrize("widths", ["7000", "0:5", "9:8", "1:2:0", "a:b", "1:99999999999"])
def test_a_range_that_is_none_is_refused(widths: str, capsys):
    code, _, err = run(capsys, "sweep", "--widths", widths)
    assert code == 2
    assert "widths from 1 such as 7000:7300" in err
