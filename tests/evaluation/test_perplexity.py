"""Perplexity of whole texts against a plain loop over transformers' model, and what is known without one."""

from __future__ import annotations

import json
import math
import re

import numpy
import pytest
import torch

from pyprune import Evaluation, InputError, evaluate, load, perplexity, to_transformers
from pyprune.evaluation.perplexity import WindowLosses, window_losses
from pyprune.evaluation.protocol import PROTOCOLS, PerplexityProtocol
from pyprune.evaluation.texts import read_text_of
from pyprune.evaluation.windows import windows_of
from pyprune.scoring import calibration as texts
from pyprune.scoring import cells, evaluator
from pyprune.scoring.calibration.sources import Texts
from tests import seeds
from tests.evaluation.conftest import SIZES, TEXT, byte_level_tokenizer, save_model
from tests.judge import assert_no_worse_than_torch, in_float64
from tests.scoring.letters import LetterModel, LetterTokenizer, TokenizerWithStart

VARIANTS = [
    {"window": 16, "bos": "none"},
    {"window": 16, "bos": "first"},
    {"window": 16, "bos": "each"},
    {"window": 16, "bos": "none", "stride": 5},
    {"window": 16, "bos": "first", "stride": 16},
    {"window": 16, "bos": "each", "stride": 4},
    {"window": 33, "bos": "first", "join": "rows"},
    {"window": 33, "bos": "none", "join": "rows", "stride": 20},
]


def plain_rows(content: str) -> str:
    """The paper's join of a text's lines, blank ones empty."""
    lines = re.findall(r"[^\n]*\n|[^\n]+", content)
    return "\n\n".join("" if not line.strip() else line for line in lines)


@torch.no_grad()
def plain_losses(model, ids: list[int], window: int, stride: int | None, bos_each: int | None) -> list[list[float]]:
    """A list a window of its tokens' losses, by the well-known loops: one window at a time, with whole logits of the
    model's dtype."""
    length = window - (bos_each is not None)
    result, end_before = [], 0
    for begin in range(0, len(ids), stride or length):
        end = min(begin + length, len(ids))
        if stride is None and end - begin < length:
            break
        piece = ids[begin:end] if bos_each is None else [bos_each, *ids[begin:end]]
        logits = model(torch.tensor([piece])).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(piece[1:]), reduction="none")
        new = end - end_before
        result.append(losses[max(0, len(losses) - new) :].tolist())
        end_before = end
        if end == len(ids):
            break
    return [losses for losses in result if losses]


def plain_evaluation(model, tokenizer, content: str, window=128, bos="first", join="raw", stride=None):
    text = plain_rows(content) if join == "rows" else content
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if bos == "first":
        ids = [tokenizer.bos_token_id, *ids]
    return plain_losses(model, ids, window, stride, tokenizer.bos_token_id if bos == "each" else None)


@pytest.fixture(scope="module")
def plain_models(model_directory):
    """transformers' model in float32 and in float64."""
    from transformers import AutoModelForCausalLM

    return [
        AutoModelForCausalLM.from_pretrained(model_directory, dtype=dtype).eval()
        for dtype in (torch.float32, torch.float64)
    ]


def means(windows: list[list[float]]) -> tuple[float, float]:
    """The perplexity and its standard error (a ratio of sums, to first order), in NumPy."""
    sums, counts = numpy.array([sum(w) for w in windows]), numpy.array([len(w) for w in windows])
    mean = sums.sum() / counts.sum()
    residuals = sums - mean * counts
    error = math.sqrt(len(sums) / (len(sums) - 1) * (residuals**2).sum()) / counts.sum()
    return math.exp(mean), math.exp(mean) * error


def assert_no_worse(evaluation: Evaluation, plain: list[list[float]], exact: list[list[float]]) -> None:
    """Perplexity and standard error against those of a plain loop's losses in float32 and in float64."""
    for values in zip((evaluation.perplexity, evaluation.stderr), means(plain), means(exact), strict=True):
        assert_no_worse_than_torch(*(torch.tensor(value, dtype=torch.float64) for value in values))


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v.values())))
def test_a_text_has_the_perplexity_of_a_plain_loop(model_directory, plain_models, text_file, variant):
    evaluation = evaluate(model_directory, text_file, **variant)
    tokenizer, content = load(model_directory).tokenizer(), text_file.read_text(encoding="utf-8")
    plain, windows = (plain_evaluation(model, tokenizer, content, **variant) for model in plain_models)
    assert_no_worse(evaluation, plain, windows)
    assert evaluation.text["tokens"] == sum(map(len, windows))
    assert evaluation.text["windows"] == len(windows)


def test_windows_of_the_whole_context(tmp_path, plain_models):
    directory = save_model(tmp_path / "model", sizes=SIZES)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 48}))
    (tmp_path / "text.txt").write_text(TEXT)
    evaluation = evaluate(directory, tmp_path / "text.txt", window="full", stride=24, bos="none")
    tokenizer = load(directory).tokenizer()
    assert evaluation.text["window"] == 48
    assert_no_worse(
        evaluation, *(plain_evaluation(model, tokenizer, TEXT, 48, "none", stride=24) for model in plain_models)
    )


@pytest.mark.real_model
def test_smollm2_has_the_perplexity_of_a_plain_loop(smollm2, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    tokenizer = smollm2.tokenizer()
    models = [to_transformers(smollm2, "sdpa"), to_transformers(smollm2.to(torch.float64), "sdpa")]
    bos, ids = tokenizer.bos_token_id, tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    variants = [({"bos": "first"}, [bos, *ids][:48], None), ({"bos": "each", "stride": 10}, ids[:48], bos)]
    for options, stream, bos_each in variants:
        evaluation = evaluate(smollm2, tmp_path / "text.txt", window=16, tokens=48, **options)
        assert_no_worse(
            evaluation, *(plain_losses(model, stream, 16, options.get("stride"), bos_each) for model in models)
        )


def test_the_papers_protocol_gives_what_a_comparison_measures(model_directory, text_file):
    decoder = load(model_directory)
    held_out = texts.evaluation(decoder, text_file, 256, 64)
    assert evaluate(decoder, text_file, window=64, tokens=256).perplexity == perplexity(decoder, held_out.input_ids)
    assert PROTOCOLS["paper"] == PerplexityProtocol(128, None, "rows", "first")


def test_bytes_are_those_of_the_tokens_that_count(model_directory, text_file):
    content = text_file.read_text(encoding="utf-8")
    evaluation = evaluate(model_directory, text_file, window=16, stride=7, bos="first")
    assert evaluation.text["bytes"] == len(content.encode())  # every token counts once
    nats = math.log(evaluation.perplexity) * evaluation.text["tokens"]
    assert evaluation.bits_per_byte == pytest.approx(nats / math.log(2) / len(content.encode()), rel=1e-9)


def test_tokens_that_do_not_count_bring_no_bytes(model_directory, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    decoder = load(model_directory)
    tokenizer = decoder.tokenizer()
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    lengths = [len(token) for token in tokenizer.convert_ids_to_tokens(ids)]  # a character a byte, in this alphabet
    evaluation = evaluate(decoder, tmp_path / "text.txt", window=16, bos="none")
    counted = [length for i, length in enumerate(lengths[: len(ids) // 16 * 16]) if i % 16]
    assert evaluation.text["bytes"] == sum(counted)


def test_a_tokenizer_that_does_not_say_where_tokens_lie_shares_the_bytes_equally():
    windows = windows_of(LetterModel(), Texts("letters", ["abcd🙂"]), PerplexityProtocol(5, None, "raw", "none"))
    assert windows.bytes.tolist() == [6]  # of 8 bytes of 5 tokens, without the first token's 2


@pytest.mark.parametrize(
    ("protocol", "rows", "counted"),
    [
        (PerplexityProtocol(4, None, "raw", "none"), ["abcd", "efgh"], ["bcd", "fgh"]),
        (PerplexityProtocol(4, None, "raw", "first"), ["<abc", "defg"], ["abc", "efg"]),
        (PerplexityProtocol(4, None, "raw", "each"), ["<abc", "<def", "<ghi"], ["abc", "def", "ghi"]),
        (PerplexityProtocol(4, 3, "raw", "none"), ["abcd", "defg", "ghij"], ["bcd", "efg", "hij"]),
        (PerplexityProtocol(4, 2, "raw", "each"), ["<abc", "<cde", "<efg", "<ghi", "<ij_"],
         ["abc", "de", "fg", "hi", "j"]),
        (PerplexityProtocol(4, 4, "raw", "none"), ["abcd", "efgh", "ij__"], ["bcd", "fgh", "j"]),
        (PerplexityProtocol(3, 3, "raw", "none"), ["abc", "def", "ghi"], ["bc", "ef", "hi"]),
    ],
)  # fmt: skip
def test_windows_and_what_counts_in_them(protocol, rows, counted):
    def letters(row: list[int]) -> str:
        return "".join({27: "<", 0: "_"}.get(token, chr(token + 96)) for token in row if token >= 0)

    windows = windows_of(LetterModel(letters=TokenizerWithStart), Texts("letters", ["abcdefghij"]), protocol)
    assert [letters(row) for row in windows.input_ids.tolist()] == rows
    assert [letters(row) for row in windows.targets.tolist()] == counted
    assert int(windows.bytes.sum()) == sum(map(len, counted))


def test_a_tokenizer_without_a_bos_goes_without_where_one_is_asked_for():
    windows = windows_of(LetterModel(letters=LetterTokenizer), Texts("letters", ["abcd"]), PerplexityProtocol(2))
    assert windows.input_ids.tolist() == [[1, 2], [3, 4]]
    assert windows.description()["bos"] == "none"


def test_rows_keep_blank_ones_and_raw_keeps_the_text(tmp_path):
    (tmp_path / "text.txt").write_text(" = a =\n \nb c\n\nd\n")
    raw, rows = (read_text_of(tmp_path / "text.txt", join) for join in ("raw", "rows"))
    assert raw.packed() == " = a =\n \nb c\n\nd\n"
    assert rows.packed() == " = a =\n\n\n\n\nb c\n\n\n\n\nd\n"
    (tmp_path / "rows.jsonl").write_text('{"body": "a"}\n{"body": ""}\n{"body": "b"}\n')
    raw, rows = (read_text_of(tmp_path / "rows.jsonl", join, "body") for join in ("raw", "rows"))
    assert (raw.packed(), rows.packed()) == ("a\n\nb", "a\n\n\n\nb")


def test_token_ids_are_taken_as_they_are(model_directory, tmp_path):
    decoder = load(model_directory)
    ids = torch.randint(0, 300, (64,), generator=seeds.generator(3))
    evaluation = evaluate(decoder, ids, window=16)
    assert evaluation.perplexity == perplexity(decoder, ids.view(4, 16))
    assert (evaluation.bits_per_byte, evaluation.text["bytes"], evaluation.text["bos"]) == (None, None, "none")
    numpy.save(tmp_path / "ids.npy", ids.numpy())
    assert evaluate(model_directory, tmp_path / "ids.npy", window=16).perplexity == evaluation.perplexity


def test_streamed_blocks_and_little_memory_give_the_same(model_directory, text_file):
    whole = evaluate(model_directory, text_file, window=32)
    assert evaluate(model_directory, text_file, window=32, stream=True) == whole
    assert evaluate(model_directory, text_file, window=32, memory=26_000_000).perplexity == pytest.approx(
        whole.perplexity, rel=1e-6
    )


def test_an_interrupted_evaluation_goes_on(model_directory, text_file, tmp_path, monkeypatch):
    monkeypatch.setitem(cells.JOURNALED_MULTIPLICATIONS, "cpu", 1.0)
    monkeypatch.setattr("pyprune.scoring.footprint.ROWS", {"cpu": 64, "cuda": 64})
    sizes, run = [], evaluator.candidate_sums

    def counted(decoder, ids, *rest, **options):
        sums = run(decoder, ids, *rest, **options)
        sizes.append(len(ids))
        return sums

    def interrupt(stage: str, done: int, total: int) -> None:
        if done >= total // 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(evaluator, "candidate_sums", counted)
    options = {"window": 32, "stride": 16, "resume": tmp_path / "journal"}
    whole = evaluate(model_directory, text_file, window=32, stride=16)
    windows = whole.text["windows"]
    sizes.clear()
    with pytest.raises(KeyboardInterrupt):
        evaluate(model_directory, text_file, progress=interrupt, **options)
    assert 0 < sum(sizes) < windows
    assert evaluate(model_directory, text_file, **options).perplexity == pytest.approx(whole.perplexity, rel=1e-6)
    assert sum(sizes) == windows  # none was computed twice
    with pytest.raises(InputError, match="delete the file to begin again"):
        evaluate(model_directory, text_file, **{**options, "stride": 15})


def test_the_standard_error_is_that_of_equal_windows():
    nll, tokens = torch.tensor([4.0, 6.0, 11.0], dtype=torch.float64), torch.full((3,), 5.0, dtype=torch.float64)
    losses = WindowLosses(nll, tokens)
    assert losses.perplexity == pytest.approx(math.exp(21 / 15))
    assert losses.stderr == pytest.approx(math.exp(21 / 15) * numpy.std([0.8, 1.2, 2.2], ddof=1) / math.sqrt(3))
    assert WindowLosses(nll[:1], tokens[:1]).stderr is None


def test_a_perplexity_beyond_float64_is_infinite_and_kept(tmp_path):
    losses = WindowLosses(torch.tensor([1e4, 1e4], dtype=torch.float64), torch.ones(2, dtype=torch.float64))
    assert (losses.perplexity, losses.stderr) == (math.inf, None)
    evaluation = Evaluation("model", "float32", math.inf)
    evaluation.to_json(tmp_path / "evaluation.json")
    assert json.loads((tmp_path / "evaluation.json").read_text())["perplexity"] == "inf"
    assert Evaluation.from_json(tmp_path / "evaluation.json") == evaluation


def test_padded_targets_count_as_the_shorter_text(model_directory):
    decoder = load(model_directory)
    ids = torch.randint(0, 300, (2, 9), generator=seeds.generator(1))
    targets = ids[:, 1:].clone()
    targets[1, 4:] = -100
    shorter = window_losses(decoder, ids[1:, :5])
    both = window_losses(decoder, ids, targets)
    assert both.tokens.tolist() == [8, 4]
    assert both.nll[1] == pytest.approx(float(shorter.nll[0]), rel=1e-5)


def test_a_model_of_another_family_is_measured_too(tmp_path, text_file):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=300, n_embd=24, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=1)
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path / "gpt2")
    tokenizer = byte_level_tokenizer()
    tokenizer.save_pretrained(tmp_path / "gpt2")
    evaluation = evaluate(tmp_path / "gpt2", text_file, window=16, stride=9)
    content, models = text_file.read_text(encoding="utf-8"), (model, in_float64(model))
    assert_no_worse(evaluation, *(plain_evaluation(each, tokenizer, content, 16, stride=9) for each in models))
    ids = torch.randint(0, 300, (48,), generator=seeds.generator(2))
    assert_no_worse(
        evaluate(model, ids, window=16), *(plain_losses(each, ids.tolist(), 16, None, None) for each in models)
    )
