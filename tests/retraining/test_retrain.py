"""`pyprune.retrain` on tiny models: what it changes, what it leaves, and what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch

import pyprune
from pyprune import InputError, Pruning
from pyprune.pruning.index_map import index_map
from pyprune.retraining import retrain_with_report
from pyprune.retraining.adapters import decoder_with, trainable
from pyprune.retraining.settings import Settings
from tests import seeds

SIZES = "shape:hidden=24,blocks=4,heads=4,kv_heads=2,head_dim=6,ffn=31,vocab=61"
FEW = {"cutoff": 12, "steps": 2, "batch": 4, "micro_batch": 2, "learning_rate": 1e-2}


@pytest.fixture
def llama():
    return pyprune.load(SIZES)


@pytest.fixture
def text():
    return torch.randint(0, 61, (30, 12), generator=seeds.generator(5))


def same(one, two):
    pairs = list(zip(one.tensors(), two.tensors(), strict=True))
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def copied(decoder):
    return decoder.map(torch.clone)


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
def test_the_original_stays_to_the_bit(llama, text, full):
    pruned = pyprune.apply(llama, Pruning(blocks=(1,)))
    before = copied(llama)
    trained = pyprune.retrain(pruned, text=text, full=full, **FEW)
    assert same(llama, before)
    assert not same(trained, pruned)


def test_the_pruning_record_and_the_original_indices_stay(llama, text, tmp_path):
    pruned = pyprune.apply(llama, Pruning(blocks=(1,), ffn=(2,)))
    trained = pyprune.retrain(pruned, text=text, out=tmp_path / "out", **FEW)
    loaded = pyprune.load(str(tmp_path / "out"))
    assert same(loaded, trained)
    assert loaded.pruning == trained.pruning == pruned.pruning
    assert [block.index for block in loaded.blocks] == [0, 2, 3]
    assert index_map(loaded) == index_map(pruned)


def test_the_same_seed_gives_the_same_bits_and_another_others(llama, text):
    one, two, other = (pyprune.retrain(llama, text=text, seed=seed, **FEW) for seed in (3, 3, 4))
    assert same(one, two)
    assert not same(one, other)


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


@pytest.mark.parametrize("options", [{}, {"full": True}, {"precision": "bf16"}], ids=["lora", "full", "bf16"])
def test_a_killed_training_goes_on_as_if_it_had_not_been(llama, text, tmp_path, options):
    settings = {**FEW, "steps": 4, "save_seconds": 0, **options}

    def dies(done, total, loss):
        if done == 5:  # the first micro-batch of the third step
            raise Killed

    undisturbed = retrain_with_report(llama, text=text, **settings)
    out = tmp_path / "out"
    with pytest.raises(Killed):
        retrain_with_report(llama, text=text, out=out, resume=True, progress=dies, **settings)
    assert [path.name for path in tmp_path.iterdir()] == ["out.journal"]
    resumed = retrain_with_report(llama, text=text, out=out, resume=True, **settings)
    assert same(resumed.decoder, undisturbed.decoder)
    assert [(p.step, p.tokens, p.loss, p.held_out) for p in resumed.curve] == [
        (p.step, p.tokens, p.loss, p.held_out) for p in undisturbed.curve
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_merging_is_peft_s_own_in_float32(llama, text):
    from pyprune.retraining.adapters import merged

    network = trainable(copied(llama), Settings())
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=seeds.generator(1))
    ours = merged(llama, network)
    theirs = pyprune.load(copy.deepcopy(network).merge_and_unload())
    assert same(ours, decoder_with(theirs, lambda _, tensor: tensor))


def test_an_unknown_option_and_bad_values_are_told(llama, text):
    for options, words in (
        ({"rank": 3}, "unknown option 'rank'"),
        ({"batch": 6, "micro_batch": 4}, "a divisor of the batch, 6"),
        ({"steps": 1, "epochs": 1}, "one of the two"),
        ({"precision": "fp16"}, "fp32, bf16"),
        ({"lora_dropout": 1.0}, "from 0 to below 1"),
        ({"cutoff": 400}, "a window of 400"),
        ({"resume": True}, "beside out"),
    ):
        with pytest.raises(InputError, match=words):
            retrain_with_report(llama, text=text, **options)
