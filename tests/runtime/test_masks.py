"""Device masks, and what may change in the middle of a sequence (the KV rule)."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from pyprune import Engine, InputError, Pruning, apply
from pyprune.runtime import engine as module
from pyprune.runtime.skip import skip_plan
from tests import seeds

SKIPS = [{}, {"blocks": [1, 3]}, {"mha": [0, 2], "ffn": [4]}, {"blocks": [0, 4], "mha": [2], "ffn": [1]}]


def ids(batch: int, tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 131, (batch, tokens), generator=seeds.generator(seed))


def as_mask(skip: dict, blocks: int = 5) -> torch.Tensor:
    mask = torch.zeros(blocks, 2, dtype=torch.bool)
    mask[skip.get("blocks", [])] = True
    mask[skip.get("mha", []), 0] = True
    mask[skip.get("ffn", []), 1] = True
    return mask


@pytest.mark.parametrize("skip", SKIPS, ids=str)
@pytest.mark.parametrize("tokens", [4, 40])  # few and many tokens attend in different ways
def test_a_device_mask_gives_the_bits_of_the_same_skip_known_to_the_host(tiny, skip: dict, tokens: int):
    by_host, by_mask = (Engine(tiny, max_batch=2, max_len=60) for _ in range(2))
    for keys, values in by_mask._caches:  # what is skipped may read whatever memory held
        keys.fill_(torch.nan), values.fill_(torch.nan)
    prompt, mask = ids(2, tokens), as_mask(skip)
    assert torch.equal(by_mask.prefill(prompt, skip=mask), by_host.prefill(prompt, skip=skip))
    mask.fill_(True)  # the engine keeps its own copy
    for token in ids(6, 2, seed=1):
        assert torch.equal(by_mask.decode(token), by_host.decode(token))


@pytest.mark.parametrize("skip", SKIPS[1:], ids=str)
def test_a_device_mask_gives_the_tokens_of_the_physically_pruned_model(tiny, skip: dict):
    prompt = ids(2, 9)
    pruned = Engine(apply(tiny, Pruning.from_skip(skip)), max_batch=2, max_len=64)
    new = Engine(tiny, max_batch=2, max_len=64).generate(prompt, max_new_tokens=30, skip=as_mask(skip))
    assert torch.equal(new, pruned.generate(prompt, max_new_tokens=30))


def test_a_device_mask_is_in_original_indices_too(tiny):
    pruned, prompt = apply(tiny, Pruning(blocks=[1], ffn=[4])), ids(1, 7)
    new = Engine(pruned, max_len=32).generate(prompt, max_new_tokens=10, skip=as_mask({"blocks": [3], "mha": [0]}))
    skip = {"blocks": [1, 3], "ffn": [4], "mha": [0]}
    assert torch.equal(new, Engine(tiny, max_len=32).generate(prompt, max_new_tokens=10, skip=skip))


def test_host_and_device_masks_take_turns(tiny):
    engine, prompt = Engine(tiny, max_len=32), ids(1, 7)
    expected = engine.generate(prompt, max_new_tokens=10, skip=[2])
    whole = engine.generate(prompt, max_new_tokens=10)
    assert torch.equal(engine.generate(prompt, max_new_tokens=10, skip=as_mask({"blocks": [2]})), expected)
    assert torch.equal(engine.generate(prompt, max_new_tokens=10), whole)


@pytest.mark.parametrize("shape", [(5,), (10,), (2, 5), (4, 2), (5, 2, 1)])
def test_a_mask_of_another_shape_is_refused(tiny, shape: tuple[int, ...]):
    with pytest.raises(InputError, match=r"skip: a mask of shape .* \[5, 2\]"):
        skip_plan(tiny, torch.zeros(shape, dtype=torch.bool))
    with pytest.raises(InputError, match="skip: a mask of shape"):
        Engine(tiny, max_len=40).generate(ids(1, 3), skip=torch.zeros(shape, dtype=torch.bool))


def test_integers_in_a_tensor_are_block_indices(tiny):
    engine, prompt = Engine(tiny, max_len=32), ids(1, 7)
    expected = engine.prefill(prompt, skip=[1, 3])
    assert torch.equal(engine.prefill(prompt, skip=torch.tensor([1, 3])), expected)


# --- changes in the middle of a sequence ----------------------------------------------------------------------------


def test_what_decode_leaves_out_holds_until_it_is_changed(tiny):
    engine, prompt, tokens = Engine(tiny, max_len=32), ids(1, 7), ids(6, 1, seed=1)
    skips = [{"ffn": [1]}, None, {"ffn": [3], "mha": [2]}, None, {"mha": [2]}, {"blocks": [2, 4]}]
    engine.prefill(prompt)
    logits = [engine.decode(token, skip=skip) for token, skip in zip(tokens, skips, strict=True)]
    # The same by hand: every token decoded with the blocks that run for it, over the same cache.
    by_hand = Engine(tiny, max_len=32)
    by_hand.prefill(prompt)
    runs = [({1}, {}), ({1}, {}), ({3}, {2}), ({3}, {2}), ({}, {2}), ({2, 4}, {2, 4})]
    for token, (ffn, mha), expected in zip(tokens, runs, logits, strict=True):
        flags = as_mask({"ffn": list(ffn), "mha": list(mha)}).flatten()
        by_hand._skip_plan = dataclasses.replace(by_hand._skip_plan, device_mask=flags)
        assert torch.equal(by_hand.decode(token), expected)


@pytest.mark.parametrize("first", [{"mha": [2]}, {"blocks": [2]}])
def test_an_mha_left_out_in_the_prefill_cannot_come_back(tiny, first: dict):
    engine = Engine(tiny, max_len=32)
    logits = engine.prefill(ids(1, 7), skip=first)
    for skip in ([], {}, {"ffn": [2]}, [1]):
        with pytest.raises(InputError, match="the MHA of block 2 was skipped"):
            engine.decode(logits.argmax(-1), skip=skip)
    engine.decode(logits.argmax(-1), skip={"mha": [2]})  # its FFN may
    engine.prefill(ids(1, 7))  # and it may in the next sequence
    engine.decode(logits.argmax(-1), skip=[])


def test_an_mha_left_out_in_decoding_cannot_come_back(tiny):
    engine, token = Engine(tiny, max_len=32), torch.tensor([5])
    engine.prefill(ids(1, 7))
    engine.decode(token, skip={"mha": [3]})
    before = engine.lengths
    with pytest.raises(InputError, match="the MHA of block 3 was skipped"):
        engine.decode(token, skip=[])
    assert torch.equal(engine.lengths, before)
    engine.decode(token)
    engine.decode(token, skip={"mha": [3], "ffn": [1]})


def test_the_refusal_names_the_original_block(tiny):
    engine, token = Engine(apply(tiny, Pruning(blocks=[0, 1])), max_len=32), torch.tensor([5])
    engine.prefill(ids(1, 7), skip=[3])
    with pytest.raises(InputError, match="the MHA of block 3 was skipped"):
        engine.decode(token, skip=[])


@pytest.mark.parametrize(("first", "then"), [("mask", "mask"), ("mask", "host"), ("host", "mask")])
def test_a_device_mask_cannot_change_in_the_middle_of_a_sequence(tiny, first: str, then: str):
    engine, skips = Engine(tiny, max_len=32), {"mask": as_mask({"ffn": [1]}), "host": {"ffn": [1]}}
    engine.prefill(ids(1, 7), skip=skips[first])
    with pytest.raises(InputError, match="a device mask holds from one prefill to the next"):
        engine.decode(torch.tensor([5]), skip=skips[then])
    engine.decode(torch.tensor([5]))


def test_a_bad_skip_in_decoding_is_refused_and_changes_nothing(tiny):
    engine, other = Engine(tiny, max_len=32), Engine(tiny, max_len=32)
    for one in (engine, other):
        one.prefill(ids(1, 7))
    with pytest.raises(InputError, match="block 9"):
        engine.decode(torch.tensor([5]), skip=[9])
    assert torch.equal(engine.decode(torch.tensor([5])), other.decode(torch.tensor([5])))


def test_a_block_without_attention_is_no_hindrance(tiny):
    block = dataclasses.replace(tiny.blocks[1], mha=None)
    decoder = dataclasses.replace(tiny, blocks=(tiny.blocks[0], block, *tiny.blocks[2:]))
    engine = Engine(decoder, max_len=32)
    engine.prefill(ids(1, 7), skip={"ffn": [1]})
    engine.decode(torch.tensor([5]), skip=[])


def test_operators_of_a_host_mask_get_no_flags(tiny, monkeypatch):
    seen = []
    real = module.ops.linear_residual
    monkeypatch.setattr(module.ops, "linear_residual", lambda *given: seen.append(given[4]) or real(*given))
    engine = Engine(tiny, max_len=32)
    engine.prefill(ids(1, 7), skip=[1])
    assert seen == [None] * 8  # 4 blocks, 2 halves each: what is left out is not called
    seen.clear()
    engine.prefill(ids(1, 7), skip=as_mask({"blocks": [1]}))
    assert len(seen) == 10
    assert all(flags is engine._mask_buffer for flags in seen)
