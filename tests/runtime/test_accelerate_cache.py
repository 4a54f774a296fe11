"""Caches that an accelerated model writes: what transformers does with them, and what their holders see."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import Cache, DynamicLayer

from pyprune import ops
from pyprune.runtime.huggingface import cache as module
from tests.judge import assert_model_no_worse, in_float64
from tests.runtime.test_accelerate import calls, ids, pair

__all__ = ["calls"]


def feed(model: nn.Module, tokens: Tensor, cache: Cache | None = None) -> tuple[Tensor, Cache]:
    with torch.no_grad():
        out = model(tokens, past_key_values=cache, use_cache=True)
    return out.logits, out.past_key_values


def three() -> tuple[nn.Module, nn.Module, nn.Module]:
    """The same model accelerated, as transformers makes it, and that in float64."""
    ours, theirs = pair()
    return ours, theirs, in_float64(theirs)


def assert_same_cache(ours: Cache, theirs: Cache, exact: Cache) -> None:
    assert ours.get_seq_length() == theirs.get_seq_length()
    for a, b, c in zip(ours.layers, theirs.layers, exact.layers, strict=True):
        assert type(a) is type(b)
        assert vars(a).keys() == vars(b).keys()
        shown = slice(exact.get_seq_length())  # rows behind it, of a static cache, are zeros or of no meaning
        for states in ((a.keys, b.keys, c.keys), (a.values, b.values, c.values)):
            assert_model_no_worse(*(one[:, :, shown] for one in states))
            assert torch.equal(states[0][:, :, shown.stop :], states[1][:, :, shown.stop :])


def test_a_dynamic_cache_holds_what_transformers_would_have_put_there():
    models = three()
    caches: list[Cache | None] = [None, None, None]
    for step in range(5):
        tokens = ids(2, 1 + 3 * step, seed=step)
        for i, model in enumerate(models):
            _, caches[i] = feed(model, tokens, caches[i])
        assert_same_cache(*caches)


def test_rows_are_appended_in_place_while_there_is_room(monkeypatch):
    monkeypatch.setattr(module, "SPARE_ROWS", 4)
    ours, _ = pair()
    _, cache = feed(ours, ids(1, 8))
    keys = []  # held, so that no memory is used again
    for step in range(10):
        feed(ours, ids(1, 1, seed=step), cache)
        keys.append(cache.layers[0].keys)
    addresses = [tensor.data_ptr() for tensor in keys]
    assert [len(set(addresses[:4])), len(set(addresses[4:9])), len(set(addresses))] == [1, 1, 3]


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_cache_filled_by_one_model_serves_the_other(kind: str):
    ours, theirs, exact = three()

    def new() -> Cache:
        return (
            StaticCache(config=ours.config, max_cache_len=20) if kind == "static" else DynamicCache(config=ours.config)
        )

    plain, whole = feed(theirs, ids(2, 10), new())
    true, exact_whole = feed(exact, ids(2, 10), new())
    for first, second in ((ours, theirs), (theirs, ours)):
        _, cache = feed(first, ids(2, 10)[:, :6], new())
        logits, cache = feed(second, ids(2, 10)[:, 6:], cache)
        assert_model_no_worse(logits, plain[:, 6:], true[:, 6:])
        assert_same_cache(cache, whole, exact_whole)


CHANGES = {
    "crop": lambda cache: cache.crop(-3),
    "reorder": lambda cache: cache.reorder_cache(torch.tensor([1, 0])),
    "repeat": lambda cache: cache.batch_repeat_interleave(2),
    "select": lambda cache: cache.batch_select_indices(torch.tensor([1])),
    "reset": lambda cache: cache.reset(),
    "copy": lambda cache: [setattr(layer, "keys", layer.keys.clone()) for layer in cache.layers],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_cache_goes_on_and_earlier_views_keep_their_values(change):
    models = three()
    caches = [feed(model, ids(2, 9))[1] for model in models]
    caches = [feed(model, ids(2, 1, seed=1), cache)[1] for model, cache in zip(models, caches, strict=True)]
    held = caches[0].layers[1].keys, caches[0].layers[1].values
    values = [states.clone() for states in held]
    for cache in caches:
        change(cache)
    for step in range(2, 5):
        tokens = ids(2, 2, seed=step)
        batch = len(caches[1].layers[0].keys) if caches[1].get_seq_length() else 2
        tokens = tokens.repeat(2, 1)[:batch]
        assert_model_no_worse(*(feed(model, tokens, cache)[0] for model, cache in zip(models, caches, strict=True)))
        assert_same_cache(*caches)
    assert all(torch.equal(a, b) for a, b in zip(held, values, strict=True))


@pytest.mark.parametrize("kind", ["shallow", "deep", "saved"])
def test_copies_of_a_cache_grow_apart(kind: str):
    models = three()

    def copies(cache: Cache) -> list[Cache]:
        if kind == "deep":
            return [cache, copy.deepcopy(cache)]
        if kind == "saved":
            file = io.BytesIO()
            torch.save(cache, file)
            file.seek(0)
            return [cache, torch.load(file, weights_only=False)]
        twin = copy.copy(cache)
        twin.layers = [copy.copy(layer) for layer in cache.layers]
        return [cache, twin]

    results = []
    for model in models:
        both = copies(feed(model, ids(1, 5))[1])
        for step in range(3):  # in turn, so that each would write where the other reads
            for i, cache in enumerate(both):
                results.append(feed(model, ids(1, 1, seed=10 * i + step), cache)[0])
    for logits in zip(results[:6], results[6:12], results[12:], strict=True):
        assert_model_no_worse(*logits)


def test_keys_and_values_may_come_from_different_caches(monkeypatch):
    ours, *others = three()
    _, one = feed(ours, ids(1, 5))
    monkeypatch.setattr(module, "SPARE_ROWS", 8)
    _, other = feed(ours, ids(1, 5))
    for layer, donor in zip(one.layers, other.layers, strict=True):
        layer.keys = donor.keys
    expected = [feed(model, ids(1, 2, seed=1), feed(model, ids(1, 5))[1])[0] for model in others]
    for cache in (one, other):
        assert_model_no_worse(feed(ours, ids(1, 2, seed=1), cache)[0], *expected)


@pytest.mark.parametrize("operator", [ops.norm_qkv_rope, ops.reference.norm_qkv_rope], ids=["in use", "reference"])
def test_a_cache_made_in_inference_mode_can_be_continued_outside(monkeypatch, operator):
    monkeypatch.setattr(ops, "norm_qkv_rope", operator)
    logits = []
    for model in three():
        with torch.inference_mode():
            cache = model(ids(1, 6), use_cache=True).past_key_values
        logits.append(feed(model, ids(1, 2, seed=1), cache)[0])
    assert_model_no_worse(*logits)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_cache_of_another_batch_is_refused_as_ever(kind: str):
    for model in pair():
        static = StaticCache(config=model.config, max_cache_len=9) if kind == "static" else None
        _, cache = feed(model, ids(3, 6), static)
        with pytest.raises(RuntimeError):
            feed(model, ids(2, 1), cache)


def test_a_full_static_cache_is_refused():
    for model in pair():
        _, cache = feed(model, ids(1, 6), StaticCache(config=model.config, max_cache_len=6))
        with pytest.raises((RuntimeError, IndexError)):
            feed(model, ids(1, 1), cache)


@pytest.mark.parametrize("own", ["layers", "cache"])
def test_a_cache_of_the_user_s_own_is_given_keys_and_values(calls, own: str):
    updates: list[int] = []

    class Counting:
        def update(self, *args: object, **options: object) -> tuple[Tensor, Tensor]:
            updates.append(1)
            return super().update(*args, **options)

    class CountingLayer(Counting, DynamicLayer):
        pass

    class CountingCache(Counting, DynamicCache):
        pass

    logits = []
    for model in three():
        cache = Cache(layer_class_to_replicate=CountingLayer) if own == "layers" else CountingCache(config=model.config)
        feed(model, ids(2, 6), cache)
        logits.append(feed(model, ids(2, 3, seed=1), cache)[0])
    assert_model_no_worse(*logits)
    assert len(updates) == 3 * 6
    assert calls["norm_qkv_rope"] == 6
