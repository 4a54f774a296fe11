"""What the demonstrations train on was neither calibrated on nor is a task's."""

from __future__ import annotations

import numpy
import pytest

from pyprune import InputError
from pyprune.retraining.clean_texts import TASKS, Drawn, cleaned, drawn_rows, quoting_rows, require_clean
from pyprune.scoring.calibration import calibration
from pyprune.scoring.calibration.demonstrations import DEMONSTRATIONS
from pyprune.scoring.calibration.sources import GAP, Texts
from tests import seeds

needs_texts = pytest.mark.skipif(
    any(text.package.find() is None for text in DEMONSTRATIONS.values()), reason="the demonstration texts are missing"
)


class Letters:
    """A tokenizer with a token for every two characters."""

    def __call__(self, text, **_):
        spans = [(start, min(start + 2, len(text))) for start in range(0, len(text), 2)]
        return {"offset_mapping": spans, "input_ids": [ord(text[first]) % 256 for first, _ in spans]}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_rows_are_those_that_the_windows_overlap(seed):
    generator = numpy.random.default_rng(seeds.seed(seed))
    documents = ["x" * int(length) for length in generator.integers(1, 60, size=80)]
    owner = []  # of every character of the packed text
    for row, document in enumerate(documents):
        owner += ([-1] * len(GAP) if row else []) + [row] * len(document)
    draw = Drawn(6, 5, seed)
    windows = len(range(0, len(owner), 2)) // draw.seq_len
    chosen = numpy.sort(numpy.random.default_rng(seed).choice(windows, size=6, replace=False))
    expected = {row for place in chosen for row in owner[place * 10 : place * 10 + 10]} - {-1}
    assert drawn_rows(documents, Letters(), [draw]) == expected


def test_rows_that_quote_a_drawn_one_go_too():
    passage = "one two three four five six seven eight nine ten"
    documents = [
        passage,
        "Then: three four, FIVE six seven eight nine ten; end.",
        "one two three four five six seven",
    ]
    assert quoting_rows(documents, {0}) == {0, 1}
    assert quoting_rows(documents, set()) == set()


@needs_texts
@pytest.mark.real_model
@pytest.mark.slow
def test_no_calibrated_row_is_trained_on(smollm2, monkeypatch):
    some = Texts("some", DEMONSTRATIONS["lambada"].documents()[:300])
    monkeypatch.setattr("pyprune.retraining.clean_texts.read_source", lambda name: some)
    drawn = [Drawn(10, 128), Drawn(32, 32, 5)]
    tokenizer = smollm2.tokenizer()
    left = cleaned(smollm2, "demo:lambada", drawn, tokenizer)
    text = GAP.join(left.documents)
    for draw in drawn:
        for ids in calibration(smollm2, some, draw.samples, draw.seq_len, draw.seed).input_ids:
            middle = tokenizer.decode(ids[2:-2])
            assert max(middle.split(GAP), key=len) not in text
    assert 200 < len(left.documents) < 300


@needs_texts
def test_no_passage_of_boolq_is_trained_on():
    trained = {*DEMONSTRATIONS["lambada"].documents(), *DEMONSTRATIONS["sms"].documents()}
    assert not trained & set(DEMONSTRATIONS["boolq"].documents())


@pytest.mark.parametrize("name", ["demo:boolq", *(f"hf:org/{task}:validation" for task in TASKS), "hf:piqa:test"])
def test_texts_of_the_tasks_are_refused(name):
    with pytest.raises(InputError, match="belongs to an evaluation task"):
        require_clean(name)


def test_their_training_splits_and_other_texts_are_not():
    for name in ("hf:piqa:train", "hf:org/wiki:test", "demo:lambada", "notes.txt", [[1, 2]]):
        require_clean(name)


def test_draws_are_read():
    assert Drawn.parse("10x128") == Drawn(10, 128)
    assert Drawn.parse("7x9@3") == Drawn(7, 9, 3)
    for text in ("10", "0x4", "4x", "4x4@", "ax3"):
        with pytest.raises(InputError, match="calibrated"):
            Drawn.parse(text)
