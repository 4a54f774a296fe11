"""A store keeps each piece of work whole, makes it once and times it."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch

from pyprune import repair
from pyprune.models import load
from pyprune.ops import native
from pyprune.recovery.fitting import enough_samples
from pyprune.study.recipes import models
from pyprune.study.recipes.plan import plan
from pyprune.study.recipes.recipe import read_recipe
from pyprune.study.recipes.store import Store, content_key
from pyprune.study.recipes.texts import read_texts


def test_a_piece_of_a_store_is_made_once_and_whole(tmp_path):
    store, made = Store(tmp_path / "store"), []

    def make():
        made.append(1)
        if len(made) == 1:
            raise RuntimeError("stopped")
        return {"value": len(made)}

    with pytest.raises(RuntimeError):
        store.part("kind", {"a": 1}, make)
    assert not store.has("kind", {"a": 1})
    assert list((tmp_path / "store").iterdir()) == []
    assert store.part("kind", {"a": 1, "b": 2}, make) == {"value": 2}
    assert store.part("kind", {"b": 2, "a": 1}, make) == {"value": 2}
    assert store.part("kind", {"a": 2}, make) == {"value": 3}
    assert content_key({"a": 1}) != content_key({"a": 2})


def test_what_a_kill_left_half_written_is_removed_when_its_piece_is_made(tmp_path):
    store = Store(tmp_path / "store")
    store.part("kind", {}, dict)
    (finished,) = store.folder.iterdir()
    half, other = (store.folder / f".{name}.abc.part" for name in (finished.name, "kind-other"))
    finished.rename(half)
    other.mkdir()  # perhaps of a run that goes on
    state = store.scratch("kind", {})
    state.parent.mkdir()
    store.part("kind", {}, dict)
    assert sorted(path.name for path in store.folder.iterdir()) == [other.name, finished.name, state.parent.name]
    state.write_text("state")  # a kill came before it was removed
    store.part("kind", {}, dict)
    assert not state.exists()


def test_a_piece_made_within_another_is_timed_once(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("pyprune.study.recipes.store.time.perf_counter", lambda: clock[0])
    store = Store(tmp_path / "store")

    def model():
        clock[0] += 100.0
        return {}

    def failing():
        clock[0] += 7.0
        raise RuntimeError("stopped")

    def perplexity():
        clock[0] += 1.0
        store.part("model", {}, model)
        with pytest.raises(RuntimeError):
            store.part("broken", {}, failing)
        clock[0] += 2.0
        store.part("model", {}, model)  # it is there
        return {}

    store.part("perplexity", {}, perplexity)
    store.part("other", {}, lambda: clock.append(clock.pop() + 5.0))
    assert {name.split("-")[0]: seconds for name, seconds in store.seconds.items()} == {
        "model": 100.0, "perplexity": 3.0, "other": 5.0
    }  # fmt: skip


def test_equal_prunings_of_different_names_are_one_model(small, tmp_path):
    chosen = read_recipe(small)
    budget = chosen.budgets["quick"]
    made = models.Models(load("shape:tiny"), read_texts(budget, {}, True, True), budget, Store(tmp_path / "store"))
    blocks = next(model for model in chosen.models if model.name == "Blocks 25%")
    same = replace(blocks, name="other", prune=replace(blocks.prune, amount="1"))
    assert made.content(blocks) == made.content(same)
    assert made.content(blocks) != made.content(chosen.models[0])


def test_a_repair_is_fitted_on_its_own_windows_in_the_precision_of_the_budget(small, tmp_path, monkeypatch):
    module = sys.modules["pyprune.recovery.repair"]
    monkeypatch.setattr(module, "TAIL_STEPS", replace(module.TAIL_STEPS, count=20))
    chosen = read_recipe(small)
    budget = replace(chosen.budgets["quick"], repair_samples=16, precision="fp32")
    made = models.Models(load("shape:tiny"), read_texts(budget, {}, True, True), budget, Store(tmp_path / "store"))
    blocks = next(model for model in chosen.models if model.name == "Blocks 25%")
    chain = replace(blocks, repair="refit-all-o+tail")
    ids = made.repair_windows().input_ids
    assert len(ids) == 16
    expected = repair(made.decoder, made.pruned(blocks), ids, chain.repair, precision="fp32")
    tensors = zip(made.made(chain).tensors(), expected.tensors(), strict=True)
    assert all(name == same and torch.equal(tensor, other) for (name, tensor), (same, other) in tensors)
    assert [entry["samples"] for entry in made.used_windows()] == [2, 16]
    assert made.content(chain)["repair"]["precision"] == "fp32"
    assert made.content(chain) != made.content(replace(chain, repair="refit-all-o"))


@pytest.mark.parametrize(
    ("asked", "is_fast", "precision"),
    [
        ("bf16", True, "bf16"),
        ("bf16", False, "fp32"),
        (None, True, "bf16"),
        (None, False, "fp32"),
        ("fp32", True, "fp32"),
    ],
)
def test_gradient_steps_of_a_repair_are_in_float32_where_bfloat16_is_slow(
    small, tmp_path, monkeypatch, asked, is_fast, precision
):
    chosen = read_recipe(small)
    budget = replace(chosen.budgets["quick"], precision=asked)
    made = models.Models(load("shape:tiny"), read_texts(budget, {}, True, True), budget, Store(tmp_path / "store"))
    monkeypatch.setattr(native, "multiplies_bfloat16", lambda: is_fast)
    assert made.content(replace(chosen.models[1], repair="tail"))["repair"]["precision"] == precision


def test_a_plan_counts_what_each_repair_of_a_chain_costs_and_each_once(small):
    chosen, decoder = read_recipe(small), load("shape:tiny")
    budget = replace(chosen.budgets["quick"], repair_samples=4096)
    assert enough_samples(decoder, budget.seq_len) < 4096
    blocks = next(model for model in chosen.models if model.name == "Blocks 25%")
    seconds = {}
    for method in ("refit-all-o", "tail", "refit-all-o+tail", "auto"):
        rows = [replace(blocks, name=name, repair=method) for name in ("first", "second")]
        cells = plan(replace(chosen, models=(*chosen.models, *rows)), budget, decoder, 1000.0, None).cells
        assert [cell.name for cell in cells if cell.name.startswith("repair")] == ["repair, first"]
        seconds[method] = next(cell.seconds for cell in cells if cell.name == "repair, first")
    # Before gradient steps the closed form takes fewer windows.
    assert seconds["tail"] < seconds["refit-all-o+tail"] < seconds["refit-all-o"] + seconds["tail"]
    assert seconds["auto"] == seconds["refit-all-o+tail"]
