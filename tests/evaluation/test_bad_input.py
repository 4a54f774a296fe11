"""What cannot be evaluated is refused in one line, before the weights are read where that can be known."""

from __future__ import annotations

import importlib
import json
import re
import sys
from types import SimpleNamespace

import pytest
import torch

from pyprune import Evaluation, InputError, evaluate, load
from pyprune.evaluation.texts import DATASETS, read_text_of
from tests.cli.command_line import run
from tests.evaluation.conftest import SIZES, save_model


@pytest.fixture
def unread(monkeypatch):
    """Reading a model's weights fails the test."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the weights were read")

    module = importlib.import_module("pyprune.evaluation.evaluate")  # the package has a function of that name
    monkeypatch.setattr(module, "load_any", fail)


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "--ppl TEXT or --tasks NAMES"),
        (["--ppl", "{text}", "--window", "4000"], "window 4000: at most the model's context, 2048"),
        (["--ppl", "{text}", "--window", "1500"], r"words.txt: \d+ tokens do not fill a window of 1500"),
        (["--ppl", "{text}", "--window", "64", "--tokens", "63"], r"63 tokens \(at most 63 were asked for\)"),
        (["--ppl", "{text}", "--window", "1"], "--window: '1': an integer from 2"),
        (["--ppl", "{text}", "--window", "half"], "--window: 'half'"),
        (["--ppl", "{text}", "--stride", "129"], "stride 129: at most the 128 tokens"),
        (["--ppl", "{text}", "--stride", "128", "--bos", "each"], "stride 128: at most the 127 tokens"),
        (["--ppl", "{text}", "--stride", "0"], "--stride: '0'"),
        (["--ppl", "{text}", "--join", "lines"], "'lines'"),
        (["--ppl", "{text}", "--protocol", "mine"], "'mine'"),
        (["--ppl", "{text}", "--field", "body"], "field 'body': "),
        (["--ppl", "wikitext3"], "wikitext3: no such file or data set; .* wikitext2, ptb"),
        (["--ppl", "demo:novel"], "demo:novel: no demonstration text"),
        (["--ppl", "{text}", "--limit", "0"], "--limit: '0'"),
        (["--ppl", "{text}", "--limit", "5"], "--limit 5: belongs to --tasks"),
        (["--tasks", "piqa", "--window", "64"], "--window 64: belongs to --ppl"),
        (["--tasks", "piqa", "--limit", "0"], "--limit: '0'"),
        (["--ppl", "{text}", "--resume"], "--resume: needs --out; the journal is written beside it"),
        (["--ppl", "{text}", "--out", "."], r"\.: is a directory"),
        (["--ppl", "{text}", "--device", "cuda:99"], "cuda:99: cannot be used"),
    ],
)
def test_bad_options_are_one_line_and_exit_code_2(capsys, model_directory, text_file, words, told):
    given = [word.format(text=text_file) for word in words]
    code, out, err = run(capsys, "eval", model_directory, *given)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.search(told, err), err


@pytest.mark.usefixtures("unread")
def test_a_model_without_tokenizer_needs_token_ids(capsys, tmp_path, text_file):
    code, _, err = run(capsys, "eval", "shape:tiny", "--ppl", text_file)
    assert (code, "has no tokenizer; token ids are accepted" in err) == (2, True)


@pytest.mark.usefixtures("unread")
def test_a_tokenizer_that_does_not_fit_the_vocabulary(capsys, tmp_path, text_file):
    save_model(tmp_path / "model", sizes=SIZES.replace("vocab=300", "vocab=200"))
    code, _, err = run(capsys, "eval", tmp_path / "model", "--ppl", text_file, "--window", 8)
    assert code == 2
    assert "outside the model's vocabulary of 200; the tokenizer and the weights must belong together" in err


@pytest.mark.usefixtures("unread")
def test_a_bos_in_every_window_needs_a_tokenizer_that_has_one(capsys, tmp_path, text_file):
    save_model(tmp_path / "model", bos=False)
    code, _, err = run(capsys, "eval", tmp_path / "model", "--ppl", text_file, "--window", 8, "--bos", "each")
    assert (code, "has no such token; none is accepted" in err) == (2, True)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "nothing to evaluate"),
        ({"ppl": "x", "limit": 0}, "limit: 0 given; 1 or more"),
        ({"ppl": "x", "tokens": -1}, "tokens: -1 given"),
        ({"ppl": "x", "window": 1}, "window 1"),
        ({"ppl": "x", "window": True}, "window True"),
        ({"ppl": "x", "bos": "last"}, "bos 'last'"),
        ({"ppl": torch.ones(3, 4)}, "float32"),
        ({"ppl": torch.arange(40), "join": "rows", "window": 8}, "join rows"),
        ({"ppl": torch.arange(40), "bos": "each", "window": 8}, "bos each"),
        ({"ppl": torch.full((40,), 300), "window": 8}, "token id 300 is outside"),
    ],
)
def test_bad_arguments(model_directory, options, told):
    with pytest.raises(InputError, match=told):
        evaluate(load(model_directory), **options)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": "pyprune-evaluation/9"}, "pyprune-evaluation/1 is expected"),
        ({"perplexity": "many"}, "perplexity 'many'"),
        ({"text": None}, "text None"),
    ],
)
def test_a_file_that_is_no_evaluation_is_named(tmp_path, change, told):
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps({**Evaluation("m", "float32", 3.0).to_dict(), **change}))
    with pytest.raises(InputError, match=rf"evaluation\.json: evaluation.*{told}|evaluation\.json: scores: {told}"):
        Evaluation.from_json(path)


class Hub(SimpleNamespace):
    """The library `datasets` with one data set, and what was asked of it."""

    def load_dataset(self, name: str, config: str | None, **options: object):
        self.asked = (name, config, options)
        field = self.field

        class Rows(dict):
            column_names = (field,)

        return Rows({field: ["one\n", "", "two\n"]})


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("wikitext2", ("Salesforce/wikitext", "wikitext-2-raw-v1", {"split": "test"})),
        ("ptb", ("ptb-text-only/ptb_text_only", "penn_treebank",
                 {"split": "validation", "revision": "refs/convert/parquet"})),
    ],
)  # fmt: skip
def test_the_papers_data_sets_have_names_and_keep_blank_rows(monkeypatch, name, asked):
    hub = Hub(field=DATASETS[name].field)
    monkeypatch.setitem(sys.modules, "datasets", hub)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert read_text_of(name, "rows").packed() == "one\n\n\n\n\ntwo\n"
    assert hub.asked == asked
    assert read_text_of(name, "raw").packed() == "one\n\n\ntwo\n"
