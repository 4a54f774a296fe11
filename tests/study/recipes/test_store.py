"""A store keeps each piece of work whole, makes it once and times it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pyprune.models import load
from pyprune.study.recipes import models
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
