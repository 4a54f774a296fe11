"""Long work goes on where it was cut off, however that happened."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from pyprune import InputError, Scores, load, score, search
from pyprune.scoring import cells, evaluator, footprint
from pyprune.scoring.journal import Journal, journal_subject
from tests import seeds
from tests.fresh import start_fresh

SHAPE = "shape:hidden=24,blocks=4,heads=4,kv_heads=2,head_dim=6,ffn=37,vocab=97"
S, T = 60, 40


@pytest.fixture(scope="module")
def decoder():
    return load(SHAPE)


@pytest.fixture(scope="module")
def samples() -> torch.Tensor:
    return torch.randint(0, 97, (S, T), generator=seeds.generator(2))


@pytest.fixture
def small_parts(monkeypatch):
    """Parts as short as they get, of 1280 rows."""
    monkeypatch.setitem(cells.JOURNALED_MULTIPLICATIONS, "cpu", 1.0)


@pytest.fixture
def computed(monkeypatch):
    """How many candidates ran on how many samples, part by part."""
    sizes, run = [], evaluator.candidate_sums

    def counted(model, ids, mask, schedule, measures, **options):
        losses = run(model, ids, mask, schedule, measures, **options)
        sizes.append((len(schedule.slot_of), len(ids)))
        return losses

    monkeypatch.setattr(evaluator, "candidate_sums", counted)
    return sizes


def interrupt_at(step: int):
    def progress(done: int, total: int) -> None:
        if done * 1000 >= step * total:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("unit", ["block", "mha+ffn"])
def test_finished_parts_are_not_computed_again(decoder, samples, tmp_path, small_parts, computed, unit: str):
    uninterrupted = score(decoder, samples, unit=unit)
    computed.clear()
    with pytest.raises(KeyboardInterrupt):
        score(decoder, samples, unit=unit, resume=tmp_path / "journal", progress=interrupt_at(600))
    before = sum(candidates * count for candidates, count in computed)
    assert 0 < before < S * (len(uninterrupted.units) + 1)
    fractions = []
    resumed = score(
        decoder,
        samples,
        unit=unit,
        resume=tmp_path / "journal",
        progress=lambda done, total: fractions.append(done / total),
    )
    assert sum(candidates * count for candidates, count in computed) == S * (len(uninterrupted.units) + 1)
    assert resumed.values == pytest.approx(uninterrupted.values, rel=1e-6)
    assert resumed.order() == uninterrupted.order()
    assert fractions[0] > 0.3  # what is finished counts as done
    computed.clear()
    third = score(decoder, samples, unit=unit, resume=tmp_path / "journal")
    assert third.values == resumed.values  # to the bit: nothing was computed
    assert computed == []


@pytest.mark.slow
def test_a_search_goes_on_in_the_round_in_which_it_was_cut_off(decoder, samples, tmp_path, small_parts, computed):
    uninterrupted = search(decoder, samples, count=3, unit="mha+ffn")
    computed.clear()
    with pytest.raises(KeyboardInterrupt):
        search(decoder, samples, count=3, unit="mha+ffn", resume=tmp_path / "journal", progress=interrupt_at(500))
    search_again = search(decoder, samples, count=3, unit="mha+ffn", resume=tmp_path / "journal")
    assert sum(candidates * count for candidates, count in computed) == S * (9 + 7 + 6)
    assert search_again.order == uninterrupted.order
    assert search_again.scores == pytest.approx(uninterrupted.scores, rel=1e-6)


def test_parts_share_the_states_that_they_begin_with(decoder, samples, tmp_path, monkeypatch):
    monkeypatch.setitem(cells.JOURNALED_MULTIPLICATIONS, "cpu", 1.0)
    monkeypatch.setitem(footprint.ROWS, "cpu", 2 * T)
    few = samples[:3]
    found = search(decoder, few, "window", count=1, resume=tmp_path / "journal")
    lines = (tmp_path / "journal").read_text().splitlines()
    assert {len(json.loads(line)["entry"]["edits"]) for line in lines[1:]} <= {1, 2}  # candidates were cut
    assert found.cost == search(decoder, few, "window", count=1).cost
    assert found.scores == pytest.approx(search(decoder, few, "window", count=1).scores, rel=1e-6)


@pytest.fixture
def written(decoder, samples, tmp_path) -> Path:
    """A journal of one header and three parts."""
    path = tmp_path / "work.journal"
    with Journal(path, journal_subject(decoder, samples, None, "score ppl block")) as journal:
        for first in range(3):
            journal.add(
                [frozenset(), frozenset({0, 1})],
                first,
                torch.tensor([[[1 / 3 + first], [2e-300]]], dtype=torch.float64),
            )
    return path


def read(path: Path, decoder, samples, work: str = "score ppl block"):
    losses, pending = torch.zeros(1, 2, 4, dtype=torch.float64), torch.ones(2, 4, dtype=torch.bool)
    with Journal(path, journal_subject(decoder, samples, None, work)) as journal:
        journal.fill([frozenset({0, 1}), frozenset()], losses, pending)
    return losses[0], pending


def test_what_is_read_is_what_was_written_to_the_bit(decoder, samples, written):
    found, pending = read(written, decoder, samples)
    assert found[1, :3].tolist() == [1 / 3 + first for first in range(3)]
    assert found[0, :3].tolist() == [2e-300] * 3
    assert pending.tolist() == [[False, False, False, True]] * 2


@pytest.mark.parametrize("cut", [1, 20, -1])
def test_a_torn_last_line_is_dropped_and_written_over(decoder, samples, written, cut: int):
    lines = written.read_bytes().splitlines(keepends=True)
    written.write_bytes(b"".join(lines[:-1]) + lines[-1][:cut])
    _, pending = read(written, decoder, samples)
    assert pending.tolist() == [[False, False, True, True]] * 2
    assert written.read_bytes() == b"".join(lines[:-1])
    with Journal(written, journal_subject(decoder, samples, None, "score ppl block")) as journal:
        journal.add([frozenset()], 3, torch.ones(1, 1, 1).double())
    assert read(written, decoder, samples)[1].tolist() == [[False, False, True, True], [False, False, True, False]]


def test_an_empty_or_torn_first_line_begins_anew(decoder, samples, written):
    header = written.read_bytes().splitlines(keepends=True)[0]
    for start in (b"", header[:30]):
        written.write_bytes(start)
        assert read(written, decoder, samples)[1].all()
        assert written.read_bytes() == header


def test_damage_before_the_last_line_is_reported(decoder, samples, written):
    content = written.read_bytes()
    written.write_bytes(content.replace(b'"first": 1', b'"first": 2'))
    with pytest.raises(InputError, match=r"work.journal: line 3 is damaged; delete the file to begin again"):
        read(written, decoder, samples)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (dict(spec=SHAPE.replace("ffn=37", "ffn=38")), "of model .*ffn=37.*, but model is .*ffn=38"),
        (dict(dtype=torch.bfloat16), "of dtype float32, but dtype is bfloat16 now"),
        (dict(first=1), "of calibration [0-9a-f]+, but calibration is [0-9a-f]+ now"),
        (dict(work="search greedy ppl block"), "of work score ppl block, but work is search greedy ppl block now"),
    ],
)
def test_a_journal_of_something_else_is_refused_by_name(samples, written, other: dict, message: str):
    decoder = load(other.get("spec", SHAPE), other.get("dtype"))
    with pytest.raises(InputError, match=rf"work.journal: {message}"):
        read(written, decoder, samples[other.get("first", 0) :], other.get("work", "score ppl block"))


def test_other_weights_of_the_same_name_are_refused(decoder, samples, written):
    block = decoder.blocks[2]
    changed = decoder.map(lambda tensor: tensor * 1.01 if tensor is block.ffn.down.weight else tensor)
    with pytest.raises(InputError, match=r"of weights [0-9a-f]+, but weights is [0-9a-f]+ now"):
        read(written, changed, samples)


def test_other_weights_of_streamed_blocks_are_refused(decoder, samples, tmp_path):
    down = decoder.blocks[2].ffn.down.weight
    decoder.save(tmp_path / "one")
    decoder.map(lambda tensor: tensor * 1.01 if tensor is down else tensor).save(tmp_path / "other")
    (tmp_path / "one").rename(tmp_path / "model")
    streamed = load(tmp_path / "model", stream=True)
    Journal(tmp_path / "journal", journal_subject(streamed, samples, None, "score ppl block")).close()
    again = load(tmp_path / "model", stream=True)
    Journal(tmp_path / "journal", journal_subject(again, samples, None, "score ppl block")).close()
    (tmp_path / "model").rename(tmp_path / "one")
    (tmp_path / "other").rename(tmp_path / "model")
    changed = load(tmp_path / "model", stream=True)
    with pytest.raises(InputError, match=r"of weights [0-9a-f]+, but weights is [0-9a-f]+ now"):
        Journal(tmp_path / "journal", journal_subject(changed, samples, None, "score ppl block"))


@pytest.mark.parametrize("content", ["mine", "mine\nmine too\n", '{"entry": 1}\n'])
def test_a_file_that_is_no_journal_is_refused_and_left_alone(decoder, samples, tmp_path, content: str):
    path = tmp_path / "notes"
    path.write_text(content)
    with pytest.raises(InputError, match="notes: not a pyprune scoring journal 2; another file name"):
        read(path, decoder, samples)
    assert path.read_text() == content


def test_one_process_at_a_time_writes_a_journal(decoder, samples, written):
    subject = journal_subject(decoder, samples, None, "score ppl block")
    with Journal(written, subject), pytest.raises(InputError, match="in use by another process"):
        Journal(written, subject)


WAITS_AFTER_ENTRIES = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with it ignored
from pyprune.scoring import cells
from pyprune.scoring.journal import Journal
from pyprune.cli import main
cells.JOURNALED_MULTIPLICATIONS["cpu"] = 1.0
add = Journal.add
journal, entries = Path(sys.argv[1]), int(sys.argv[2])
def add_and_wait(*arguments):
    add(*arguments)
    if len(journal.read_text().splitlines()) >= 1 + entries:
        time.sleep(600)
Journal.add = add_and_wait
sys.exit(main(sys.argv[3:]))
"""


@pytest.mark.slow
def test_ctrl_c_and_kill_minus_9_lose_no_finished_part(tmp_path, small_parts, computed, capsys):
    from pyprune.cli import main

    out = tmp_path / "scores.json"
    journal = tmp_path / "scores.json.journal"
    command = ["score", SHAPE, "--samples", str(S), "--seq-len", str(T), "--out", str(out), "--resume"]

    def stopped(by: signal.Signals, entries: int) -> int:
        with start_fresh(WAITS_AFTER_ENTRIES, os.environ, [(journal, entries, *command)]) as [process]:
            until = time.monotonic() + 120
            while not journal.exists() or len(journal.read_text().splitlines()) < 1 + entries:
                assert time.monotonic() < until
                assert process.status(0.02) is None, process.printed("err")
            os.kill(process.pid, by)
            return process.wait()

    assert stopped(signal.SIGINT, 1) == 130
    assert os.listdir(tmp_path) == [journal.name]
    assert stopped(signal.SIGKILL, 3) == -signal.SIGKILL
    kept = [json.loads(line)["entry"] for line in journal.read_text().splitlines()[1:]]
    with journal.open("a") as file:
        file.write('{"entry": {"first": 58, "ed')  # as if the power had gone
    assert main(command) == 0
    finished = sum(len(entry["edits"]) * len(entry["sums"][0]) for entry in kept)
    assert sum(candidates * count for candidates, count in computed) == S * 5 - finished
    assert os.listdir(tmp_path) == [out.name]
    capsys.readouterr()
    assert main([*command[:-3], "--json"]) == 0
    alone = Scores.from_dict(json.loads(capsys.readouterr().out))
    assert Scores.from_json(out).values == pytest.approx(alone.values, rel=1e-6)
