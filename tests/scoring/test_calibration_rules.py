"""Packing and BOS rules: which tokens a window holds under each, and what the fingerprint says of it."""

from __future__ import annotations

import numpy
import pytest

from pyprune.errors import InputError
from pyprune.scoring import calibration as texts
from tests.scoring.letters import LetterModel, TokenizerWithStart

PLAIN = LetterModel()
STARTED = LetterModel(letters=TokenizerWithStart)
START = 27


@pytest.fixture
def alphabet(tmp_path):
    path = tmp_path / "alphabet.txt"
    path.write_text("abcdefghijklmnopqrstuvwxyz", encoding="utf-8")
    return path


@pytest.fixture
def paragraphs(tmp_path):
    """Documents of 3, 5, 4, 8 and 2 letters, told apart by their first."""
    path = tmp_path / "paragraphs.txt"
    path.write_text("abc\n\nfghij\n \nklmn\n\n\npqrstuvw\n\nyz\n", encoding="utf-8")
    return path


def test_a_bos_in_each_window_leaves_room_for_one_token_less_of_text(alphabet):
    drawn = texts.calibration(STARTED, alphabet, samples=5, seq_len=6, bos="each")
    assert drawn.input_ids.tolist() == [[START, *range(n, n + 5)] for n in range(1, 26, 5)]
    assert drawn.fingerprint["bos"] == "each"
    assert "packing" not in drawn.fingerprint


def test_one_bos_comes_before_all_of_the_text(alphabet):
    drawn = texts.calibration(STARTED, alphabet, samples=3, seq_len=9, bos="first")
    assert drawn.input_ids.flatten().tolist() == [START, *range(1, 27)]
    assert drawn.fingerprint["bos"] == "first"


def test_no_bos_is_placed_unless_asked_for(alphabet):
    drawn = texts.calibration(STARTED, alphabet, samples=2, seq_len=13)
    assert drawn.input_ids.flatten().tolist() == list(range(1, 27))
    assert set(drawn.fingerprint) == {"sha256", "samples", "seq_len", "seed", "source"}


def test_a_bos_that_the_tokenizer_lacks_is_refused(alphabet):
    for rule in ("first", "each"):
        with pytest.raises(InputError, match="the tokenizer of letters has no such token"):
            texts.calibration(PLAIN, alphabet, samples=1, seq_len=3, bos=rule)


def test_one_window_too_few_counts_the_text_of_a_window_without_its_bos(alphabet):
    with pytest.raises(InputError, match="26 tokens give 5 windows of 5 tokens; 6 samples need 30"):
        texts.calibration(STARTED, alphabet, samples=6, seq_len=6, bos="each")


def test_each_document_long_enough_gives_one_window_of_its_own_letters(paragraphs):
    # Three of the five have four letters or more; all three must come, in the order of the text.
    for seed in range(20):
        drawn = texts.calibration(PLAIN, paragraphs, samples=3, seq_len=4, seed=seed, packing="documents")
        first = [row[0] for row in drawn.input_ids.tolist()]
        assert drawn.input_ids.tolist() == [list(range(start, start + 4)) for start in first]
        assert first[0] in (6, 7)
        assert first[1] == 11
        assert first[2] in range(16, 21)
        assert drawn.fingerprint["packing"] == "documents"


def test_windows_of_documents_are_random_in_place_and_in_document_and_the_same_for_the_same_seed(paragraphs):
    def starts(seed: int) -> tuple[int, ...]:
        drawn = texts.calibration(PLAIN, paragraphs, samples=2, seq_len=4, seed=seed, packing="documents")
        return tuple(row[0] for row in drawn.input_ids.tolist())

    found = [starts(seed) for seed in range(40)]
    assert found == [starts(seed) for seed in range(40)]
    seen = {start for pair in found for start in pair}
    assert seen == {6, 7, 11, *range(16, 21)}


def test_documents_too_short_are_counted_in_the_refusal(paragraphs):
    with pytest.raises(InputError, match=r"2 of 5 documents have 5 tokens or more; 3 samples need as many"):
        texts.calibration(PLAIN, paragraphs, samples=3, seq_len=5, packing="documents")


def test_a_window_of_a_document_can_begin_with_a_bos(paragraphs):
    drawn = texts.calibration(STARTED, paragraphs, samples=3, seq_len=5, packing="documents", bos="each")
    assert drawn.input_ids[:, 0].tolist() == [START] * 3
    assert drawn.input_ids[1].tolist() == [START, 11, 12, 13, 14]
    assert drawn.fingerprint["bos"] == "each"


def test_rows_of_token_ids_are_documents():
    rows = numpy.arange(20).reshape(2, 10)
    drawn = texts.calibration(PLAIN, rows, samples=2, seq_len=10, packing="documents")
    assert drawn.input_ids.tolist() == rows.tolist()


def test_the_hash_tells_rules_apart_by_their_tokens(alphabet):
    hashes = {
        texts.calibration(STARTED, alphabet, samples=1, seq_len=5, bos=rule).fingerprint["sha256"]
        for rule in texts.BOS_RULES
    }
    assert len(hashes) == 3


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ({"packing": "padded"}, "packing 'padded': packed, documents are accepted"),
        ({"bos": "yes"}, "bos 'yes': none, first, each are accepted"),
        ({"packing": "documents", "bos": "first"}, "bos first: belongs to packing packed"),
    ],
)
def test_rules_that_are_unknown_or_do_not_go_together_are_refused(alphabet, rules, told):
    with pytest.raises(InputError, match=told):
        texts.calibration(STARTED, alphabet, samples=1, seq_len=3, **rules)


@pytest.mark.parametrize("rule", [{"field": "body"}, {"packing": "documents"}, {"bos": "each"}])
def test_random_ids_have_no_rules(rule):
    shape = LetterModel(name="shape:letters", tokenizer_source=None)
    with pytest.raises(InputError, match="shape:letters gets random token ids"):
        texts.calibration(shape, samples=1, seq_len=3, **rule)
