"""Texts of several models side by side, and how much they repeat."""

from __future__ import annotations

import json

import pytest

from pyprune import InputError, apply, load, samples
from pyprune.evaluation.repetition import repeated_share, repeated_share_stderr
from pyprune.models.pruning import Pruning
from pyprune.study.samples import PROMPTS, Samples
from tests.cli.command_line import run
from tests.evaluation.conftest import byte_level_tokenizer


@pytest.fixture(scope="module")
def pruned_directory(model_directory, tmp_path_factory):
    directory = tmp_path_factory.mktemp("samples") / "pruned"
    apply(load(model_directory), Pruning(blocks=[1])).save(directory)
    return directory


def test_repeated_grams_are_counted_within_each_text():
    assert repeated_share([[1, 2, 3, 4, 5]]) == 0
    assert repeated_share([[1, 2, 1, 2, 1, 2, 1]]) == pytest.approx(2 / 4)  # 1212, 2121, 1212, 2121
    assert repeated_share([[1, 2, 3, 4], [1, 2, 3, 4]]) == 0
    assert repeated_share([[7] * 8, [1, 2, 3, 4, 5], [1, 2]]) == pytest.approx(1 - 3 / 7)
    assert repeated_share([[1, 2, 3], []]) is None


def test_the_error_of_a_repeated_share_is_that_between_texts():
    # 4 of 5 grams and 0 of 2: the share is 4/7, and the texts are 8/7 above and below it.
    assert repeated_share_stderr([[7] * 8, [1, 2, 3, 4, 5], [1, 2]]) == pytest.approx(16 / 49)
    assert repeated_share_stderr([[7] * 8] * 3) == pytest.approx(0)
    assert repeated_share_stderr([[7] * 8, [1, 2]]) is None


def test_models_write_on_the_papers_prompts(model_directory, pruned_directory):
    written = samples(model_directory, pruned_directory, max_new_tokens=12, draws=2, seed=3)
    original, pruned = written.models
    assert (original["name"], pruned["name"]) == ("small-model", "pruned")
    assert [text["prompt"] for text in original["texts"]] == [prompt for prompt in PROMPTS for _ in range(2)]
    assert [text["text"] for text in original["texts"]] != [text["text"] for text in pruned["texts"]]
    assert original["tokens"] == sum(text["tokens"] for text in original["texts"]) <= 12 * 2 * len(PROMPTS)
    assert samples(model_directory, pruned_directory, max_new_tokens=12, draws=2, seed=3) == written
    assert samples(model_directory, max_new_tokens=12, draws=2, seed=4).models[0] != original
    # What is drawn for a prompt does not depend on the others.
    alone = samples(model_directory, prompts=[PROMPTS[1]], max_new_tokens=12, draws=2, seed=3)
    assert alone.models[0]["texts"] == original["texts"][2:4]


def test_the_share_is_that_of_the_tokens_written(model_directory):
    text = samples(model_directory, prompts=["a b"], max_new_tokens=40, top_k=2, temperature=0.1).models[0]
    ids = byte_level_tokenizer()(text["texts"][0]["text"], add_special_tokens=False)["input_ids"]
    assert text["repeated_4grams"] is not None
    if len(ids) == text["tokens"]:  # else the text's own tokens are others than those written
        assert text["repeated_4grams"] == pytest.approx(repeated_share([ids]))


def test_any_text_stands_in_the_tables_as_it_is():
    texts = [{"prompt": "<b>|", "draw": 0, "text": "*x*\n# _y_ & `z`", "tokens": 3}]
    model = {"name": "a_b", "parameters": 10, "dtype": "float32", "tokens": 3, "repeated_4grams": None, "texts": texts}
    settings = {"max_new_tokens": 3, "top_k": 50, "top_p": 0.95, "temperature": 1.0, "seed": 0, "draws": 1}
    written = Samples(settings, [model])
    assert r"| a\_b | \<b\>\|\*x\*<br>\# \_y\_ \& \`z\` |" in written.markdown()
    assert "| a\\_b | 0.0 | 3 | too short |" in written.markdown()
    assert "&lt;b&gt;|*x*\n# _y_ &amp; `z`" in written.html()


def test_the_command_writes_tables_page_and_data(capsys, model_directory, pruned_directory, tmp_path):
    words = ["samples", model_directory, pruned_directory, "--max-new-tokens", 6, "--out", tmp_path / "out"]
    code, out, err = run(capsys, *words)
    assert (code, err) == (0, "")
    assert "repeated 4-grams" in out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"samples.json", "samples.md", "index.html"}
    data = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert data["format"] == "pyprune-samples/1"
    assert [model["name"] for model in data["models"]] == ["small-model", "pruned"]
    code, out, err = run(capsys, "samples", model_directory, "--prompt", "the", "--max-new-tokens", 3, "--json")
    assert (code, json.loads(out)["settings"]["prompts"]) == (0, ["the"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["shape:tiny"], "has no tokenizer"),
        (["{model}", "no-such-directory/x/y"], "no-such-directory/x/y"),
        (["{model}", "--prompt", ""], "prompts ['']"),
        (["{model}", "--max-new-tokens", "4000"], "max-new-tokens 4000: after a prompt of"),
        (["{model}", "--draws", "0"], "--draws: '0'"),
        (["{model}", "--top-p", "1.5"], "--top-p: '1.5'"),
        (["{model}", "--out", "."], ".: is a directory that is not empty"),
    ],
)
def test_bad_input_is_refused_in_one_line(capsys, model_directory, words, told, monkeypatch):
    given = [word.format(model=model_directory) for word in words]
    if "no-such" not in told:
        monkeypatch.setattr("pyprune.study.samples.load", None)  # the weights are not read
    code, out, err = run(capsys, "samples", *given)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert told in err


def test_prompts_are_texts(model_directory):
    for prompts in ((), "one", [3]):
        with pytest.raises(InputError, match="prompts"):
            samples(model_directory, prompts=prompts)
