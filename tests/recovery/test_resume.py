"""A repair that is killed goes on and ends with the same bits; what is on the disk is whole at any moment."""

from __future__ import annotations

import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import pyprune
from pyprune import InputError, Pruning
from pyprune.models.decoder import Linear
from pyprune.recovery.closed_form import Kept
from pyprune.recovery.journal import RepairJournal
from pyprune.regression.normal_equations import Fit
from pyprune.scoring.process_group import ProcessGroup
from tests import seeds

SIZES = "shape:hidden=20,blocks=5,heads=6,kv_heads=2,head_dim=6,ffn=23,vocab=53"
FAMILIES = {"llama": SIZES, "qwen2": SIZES + ",family=qwen2"}
CUT = Pruning(blocks=(2,))


class Killed(BaseException):
    """What no handler catches."""


def same(left, right):
    return all(torch.equal(a, b) for (_, a), (_, b) in zip(left.tensors(), right.tensors(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "method", "parts"),
    [
        # A part a projection and for all of them, a block; of the tail how many blocks, the steps, and the blocks.
        ("llama", "refit-all-o+blockwise+tail", 5 + 1 + 3 + 3),
        ("qwen2", "refit-all-o", 5 + 1),
        ("llama", "linear-cosine", 1 + 1),
    ],
)
def test_killed_after_each_part_it_ends_with_the_same_bits(family, method, parts, ids, tmp_path, monkeypatch):
    original = pyprune.load(FAMILIES[family], dtype=torch.float32)
    settings = {"steps": 60} if "tail" in method else {}
    undisturbed = pyprune.repair(original, CUT, ids, method, **settings)
    put = RepairJournal.put

    def put_and_die(self, *arguments):
        put(self, *arguments)
        raise Killed

    monkeypatch.setattr(RepairJournal, "put", put_and_die)
    kills = 0
    while True:
        try:
            resumed = pyprune.repair(original, CUT, ids, method, resume=tmp_path / "journal", **settings)
            break
        except Killed:
            kills += 1
        assert not list((tmp_path / "journal").glob("*.part"))
    assert kills == parts
    assert same(resumed, undisturbed)


def test_what_is_finished_is_not_fitted_again(ids, tmp_path, monkeypatch):
    original = pyprune.load(SIZES, dtype=torch.float32)
    whole = pyprune.repair(original, CUT, ids, "refit-all-o", resume=tmp_path / "journal")
    monkeypatch.setattr("pyprune.recovery.closed_form.Streams", None)  # nor is the pass
    assert same(pyprune.repair(original, CUT, ids, "refit-all-o", resume=tmp_path / "journal"), whole)
    (tmp_path / "journal" / "refit-all-o.finished.safetensors").unlink()
    monkeypatch.undo()
    monkeypatch.setattr("pyprune.recovery.fitting.fit_linear", None)
    assert same(pyprune.repair(original, CUT, ids, "refit-all-o", resume=tmp_path / "journal"), whole)


def test_auto_goes_on(ids, tmp_path):
    original = pyprune.load(SIZES, dtype=torch.float32)
    undisturbed = pyprune.repair(original, CUT, ids, steps=3)
    stages = 0

    def die_at_the_end_of_the_second_method(done, total):
        nonlocal stages
        stages += done == total
        if stages == 2 and done > 0:
            raise Killed

    with pytest.raises(Killed):
        pyprune.repair(
            original, CUT, ids, steps=3, resume=tmp_path / "journal", progress=die_at_the_end_of_the_second_method
        )
    assert same(pyprune.repair(original, CUT, ids, steps=3, resume=tmp_path / "journal"), undisturbed)


def test_another_repairs_journal_is_refused(ids, tmp_path):
    original = pyprune.load(SIZES, dtype=torch.float32)
    pyprune.repair(original, CUT, ids, "refit", resume=tmp_path / "journal", ridge=0.1)
    for changed in ({"ridge": 0.2}, {"ridge": 0.1, "exact": True}, {"ridge": 0.1, "weighting": "equal"}):
        with pytest.raises(InputError, match="belongs to a repair with other"):
            pyprune.repair(original, CUT, ids, "refit", resume=tmp_path / "journal", **changed)
    with pytest.raises(InputError, match="belongs to a repair with other"):
        pyprune.repair(original, CUT, ids[:16], "refit", resume=tmp_path / "journal", ridge=0.1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(InputError, match="not a journal of a repair"):
        pyprune.repair(original, CUT, ids, "refit", resume=tmp_path / "other")


def test_a_fit_on_all_windows_does_not_serve_a_repair_that_holds_some_out(ids, tmp_path):
    original = pyprune.load(SIZES, dtype=torch.float32)
    pyprune.repair(original, CUT, ids, "refit-all-o", ridge=0.1, resume=tmp_path / "journal")
    with pytest.raises(InputError, match="belongs to a repair with other"):
        pyprune.repair(original, CUT, ids, "refit-all-o+tail", ridge=0.1, resume=tmp_path / "journal")


def test_a_kill_before_the_subject_is_written(ids, tmp_path):
    original = pyprune.load(SIZES, dtype=torch.float32)
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / ".subject.json.abc.part").touch()
    repaired = pyprune.repair(original, CUT, ids, "refit", resume=tmp_path / "journal")
    assert same(repaired, pyprune.repair(original, CUT, ids, "refit"))


def test_a_damaged_part_is_named(ids, tmp_path):
    """As a power cut leaves it."""
    original = pyprune.load(SIZES, dtype=torch.float32)
    pyprune.repair(original, CUT, ids, "refit", resume=tmp_path / "journal")
    for part in (tmp_path / "journal").glob("*.safetensors"):
        part.write_bytes(b"")
    with pytest.raises(InputError, match=r"safetensors: damaged .*delete .*journal to begin again"):
        pyprune.repair(original, CUT, ids, "refit", resume=tmp_path / "journal")


class Broadcasts(ProcessGroup):
    """Rank 0 notes what it broadcasts; another rank gets that."""

    size = 2

    def __init__(self, rank, sent):
        self.rank, self.sent = rank, sent

    def broadcast(self, *tensors):
        for tensor in tensors:
            if self.rank == 0:
                self.sent.append(tensor.clone())
            else:
                tensor.copy_(self.sent.pop(0))


@pytest.mark.parametrize("ridge", [None, 0.1])
@pytest.mark.parametrize("has_bias", [False, True])
def test_rank_zero_reads_the_journal_for_all(tmp_path, ridge, has_bias):
    generator = seeds.generator(9)
    bias = torch.randn(4, generator=generator) if has_bias else None
    fitted = Linear(torch.randn(4, 6, generator=generator), bias)
    group = Broadcasts(0, [])
    journal = RepairJournal(tmp_path / "journal", {"work": "one"}, group)
    elsewhere = RepairJournal(tmp_path / "not here", {"work": "one"}, Broadcasts(1, []))
    assert not (tmp_path / "not here").exists()

    def stage():
        return SimpleNamespace(before=torch.zeros(1), projection=fitted.map(torch.zeros_like))

    def parts():
        return Kept(journal, "part", group), Kept(elsewhere, "part", Broadcasts(1, group.sent))

    for part in parts():
        assert part.restored(stage()) is None
    finished = stage()
    finished.projection = fitted
    values = {"ridge": ridge, "before": 0.5, "after": 0.25}
    for part in reversed(parts()):
        assert part.kept(finished, Fit(fitted, **values)) == values
    for part in parts():
        restored = stage()
        assert part.restored(restored) == values
        assert same(restored.projection, fitted)
    assert not group.sent


KILLED_WHILE_WRITING = """
import os, signal, sys
import torch, pyprune
from pyprune import files

replace, written = os.replace, 0

def die_before_the_fourth_name(source, target):
    global written
    if str(target).endswith(".safetensors"):
        written += 1
        if written == 4:
            os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = die_before_the_fourth_name
ids = torch.load(sys.argv[2])
original = pyprune.load(sys.argv[3], dtype=torch.float32)
pyprune.repair(original, pyprune.Pruning(blocks=(2,)), ids, "refit-all-o", resume=sys.argv[1])
"""


@pytest.mark.slow
def test_a_kill_while_a_part_is_written(ids, tmp_path):
    """SIGKILL in a process of its own, when the fourth part is on the disk under its temporary name."""
    torch.save(ids, tmp_path / "ids.pt")
    arguments = [str(tmp_path / "journal"), str(tmp_path / "ids.pt"), SIZES]
    ended = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, *arguments], check=False)
    assert ended.returncode == -signal.SIGKILL
    parts = sorted((tmp_path / "journal").glob("*.safetensors"))
    assert len(parts) == 3
    for part in parts:
        assert set(load_file(part)) == {"weight"}
    original = pyprune.load(SIZES, dtype=torch.float32)
    resumed = pyprune.repair(original, CUT, ids, "refit-all-o", resume=tmp_path / "journal")
    assert same(resumed, pyprune.repair(original, CUT, ids, "refit-all-o"))
