"""`pyprune.retrain` on tiny models: what it changes, what it leaves, and what it refuses."""

from __future__ import annotations

import copy
import csv
import itertools
import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import pyprune
from pyprune import InputError, Pruning
from pyprune.pruning.index_map import index_map
from pyprune.retraining import retrain_with_report
from pyprune.retraining.adapters import decoder_with, trainable
from pyprune.retraining.objectives import NextToken
from pyprune.retraining.samples import ordered
from pyprune.retraining.settings import Settings
from pyprune.retraining.trainer import Session
from tests import seeds
from tests.judge import assert_model_no_worse, assert_same_but_for_rounding, in_float64, with_exact_norms

ROOT = Path(__file__).resolve().parents[2]
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
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a user has no use for those of peft and transformers
        trained = pyprune.retrain(pruned, text=text, out=tmp_path / "out", **FEW)
    loaded = pyprune.load(str(tmp_path / "out"))
    assert same(loaded, trained)
    assert loaded.pruning == trained.pruning == pruned.pruning
    assert [block.index for block in loaded.blocks] == [0, 2, 3]
    assert index_map(loaded) == index_map(pruned)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_and_another_others(llama, text):
    one, two, other = (pyprune.retrain(llama, text=text, seed=seed, **FEW) for seed in (3, 3, 4))
    assert same(one, two)
    assert not same(one, other)


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"full": True}, {"precision": "bf16"}], ids=["lora", "full", "bf16"])
def test_a_killed_training_goes_on_as_if_it_had_not_been(llama, text, tmp_path, options):
    settings = {**FEW, "steps": 3, "save_seconds": 0, **options}

    def dies(done, total, loss):
        if done == 3:  # the first micro-batch of the second step
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


INTERRUPTED = {  # what is called -> the call that is interrupted, the steps that are kept
    "a micro-batch": (Session, "micro_batch_done", 3, 1),  # the first of the second step
    "an evaluation": (Session, "held_out_loss", 3, 2),  # the one after the second step
    "an update": (torch.optim.AdamW, "step", 2, 0),  # half of the parameters may be changed
}


@pytest.mark.parametrize("place", INTERRUPTED)
def test_an_interrupted_training_keeps_its_whole_steps_at_once(llama, text, tmp_path, monkeypatch, place):
    settings = {**FEW, "steps": 3, "eval_steps": 1}
    owner, name, call, kept = INTERRUPTED[place]
    function, calls, begins = getattr(owner, name), itertools.count(1), []

    def interrupted(*arguments, **options):
        if next(calls) == call:
            raise KeyboardInterrupt
        return function(*arguments, **options)

    undisturbed = retrain_with_report(llama, text=text, **settings)
    state = tmp_path / "state"
    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        retrain_with_report(llama, text=text, resume=state, **settings)
    monkeypatch.undo()
    assert state.exists() == (kept > 0)
    resumed = retrain_with_report(
        llama, text=text, resume=state, progress=lambda done, total, loss: begins.append(done), **settings
    )
    assert begins[0] == 2 * kept + 1
    assert same(resumed.decoder, undisturbed.decoder)
    curves = [[replace(point, seconds=0) for point in result.curve] for result in (resumed, undisturbed)]
    assert curves[0] == curves[1]


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
        ({"batch": 6, "micro_batch": 4}, "a divisor of batch, 6"),
        ({"steps": 1, "epochs": 1}, "one of the two"),
        ({"precision": "fp16"}, "fp32, bf16"),
        ({"lora_dropout": 1.0}, "from 0 to below 1"),
        ({"cutoff": 400}, "at least one window of 400"),
        ({"cutoff": llama.max_positions + 1}, f"cutoff {llama.max_positions + 1}: at most .*'s context"),
        ({"resume": True}, "resume: needs out"),
    ):
        with pytest.raises(InputError, match=words):
            retrain_with_report(llama, text=text, **options)


def test_a_held_out_text_that_nothing_is_kept_of_may_be_short(llama, text):
    report = retrain_with_report(llama, text=text, eval_text=text[:1, :5], held_out=0, **FEW)
    assert all(point.held_out is None for point in report.curve)
    with pytest.raises(InputError, match="5 tokens; at least one window of 12"):
        retrain_with_report(llama, text=text, eval_text=text[:1, :5], held_out=1, **FEW)


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
def test_weights_that_the_last_step_breaks_are_not_given_out(llama, text, full):
    """The loss of the last step is a number, its gradients are none."""

    class Broken(NextToken):
        def __call__(self, model, batch):
            loss = super().__call__(model, batch)
            loss.register_hook(lambda gradient: gradient * float("nan"))
            return loss

    with pytest.raises(ArithmeticError, match="the weights are no numbers after step 1; a smaller learning rate"):
        retrain_with_report(llama, text=text, objective=Broken(), held_out=0, full=full, **{**FEW, "steps": 1})


@pytest.mark.slow
@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.full)])
def test_killed_at_random_it_ends_the_same(tmp_path, kills):
    words = [sys.executable, "-m", "tests.retraining.killed_retrain", str(tmp_path), str(kills), str(seeds.seed())]
    told = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(told.stdout.splitlines()[-1])["kills"] == kills
    assert sorted(os.listdir(tmp_path)) == ["killed", "whole"]
    for name in ("model.safetensors", "pruning.json", "config.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    curves = [list(csv.DictReader((tmp_path / name / "curve.csv").open())) for name in ("killed", "whole")]
    for killed, whole in zip(*curves, strict=True):
        assert {**killed, "seconds": ""} == {**whole, "seconds": ""}


def test_nothing_that_was_half_written_stays(llama, text, tmp_path):
    (tmp_path / ".out.journal.ab12.part").write_text("half")
    (tmp_path / ".out.cd34.part").mkdir()
    pyprune.retrain(llama, text=text, out=tmp_path / "out", resume=True, **FEW)
    assert os.listdir(tmp_path) == ["out"]


def test_a_kill_while_the_weights_are_written_leaves_nothing_for_good(llama, text, tmp_path, monkeypatch):
    result = retrain_with_report(llama, text=text, **FEW)

    def killed(_, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        os._exit(0)

    child = os.fork()
    if not child:
        monkeypatch.setattr("pyprune.models.checkpoints._write_weights", killed)
        result.save(tmp_path / "out")
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert len(list(tmp_path.rglob("model.safetensors"))) == 1
    pyprune.retrain(llama, text=text, out=tmp_path / "out", resume=True, **FEW)
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("change", [{"learning_rate": 2e-2}, {"seed": 1}, {"cutoff": 6}], ids=str)
def test_the_state_of_another_training_is_refused(llama, text, tmp_path, change):
    journal = tmp_path / "state"
    pyprune.retrain(llama, text=text, resume=journal, **FEW)
    with pytest.raises(InputError, match="delete the file"):
        pyprune.retrain(llama, text=text, resume=journal, **{**FEW, **change})


def test_the_state_of_an_objective_with_other_settings_is_refused(llama, text, tmp_path):
    class Weighed:
        def __init__(self, weight):
            self.weight = weight

        def __call__(self, model, batch):
            return self.weight * NextToken()(model, batch)

    options = {"text": text, "resume": tmp_path / "state", **FEW}
    one, again = (pyprune.retrain(llama, objective=Weighed(0.5), **options) for _ in range(2))
    assert same(one, again)
    with pytest.raises(InputError, match="with objective"):
        pyprune.retrain(llama, objective=Weighed(0.25), **options)


def test_a_file_of_something_else_is_no_state(llama, text, tmp_path):
    (tmp_path / "state").write_bytes(b"not safetensors")
    with pytest.raises(InputError, match="not the state of a training"):
        pyprune.retrain(llama, text=text, resume=tmp_path / "state", **FEW)


PRUNINGS = {
    "depth": Pruning(blocks=(1,)),
    "ragged": Pruning(blocks=(1,), mha=(0,), ffn=(2,), kv_groups={3: (0,)}, neurons={3: tuple(range(9))}),
    "padded": Pruning(neurons={layer: tuple(range(5)) for layer in range(4)}, pad_to=8),
}
FAMILIES = {
    "llama": SIZES,
    "tied": SIZES + ",tied=1",
    "mistral": SIZES + ",family=mistral,window=5",
    "qwen2": SIZES + ",family=qwen2",
    "qwen3": SIZES + ",family=qwen3",
}


@pytest.mark.parametrize(
    ("family", "pruning"),
    [("llama", "depth"), ("mistral", "depth"), ("qwen3", "depth"), ("tied", "ragged"), ("qwen2", "padded")],
)
def test_every_family_and_form_learns_and_loads_again(text, tmp_path, family, pruning):
    original = pyprune.load(FAMILIES[family], dtype=torch.float32)
    pruned = pyprune.apply(original, PRUNINGS[pruning])
    result = retrain_with_report(pruned, text=text, cutoff=12, steps=8, batch=8, micro_batch=8, learning_rate=3e-2,
                                 out=tmp_path / "out")  # fmt: skip
    losses = [point.loss for point in result.curve[1:]]
    assert sum(losses[-3:]) < sum(losses[:3])
    loaded = pyprune.load(str(tmp_path / "out"))
    assert same(loaded, result.decoder)
    ids, model = text[:3], pyprune.to_transformers(loaded)
    ours = torch.tensor(pyprune.perplexity(loaded, ids), dtype=torch.float64).log()
    assert_model_no_worse(ours, loss_of(model, ids), loss_of(with_exact_norms(in_float64(model)), ids))


def loss_of(model, ids):
    """In the model's own dtype; transformers' is float32 in float64 too."""
    with torch.no_grad():
        logits = model(ids).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def test_a_repaired_model_keeps_its_biases(llama, text):
    pruned = pyprune.apply(llama, Pruning(blocks=(2,)))
    repaired = pyprune.repair(llama, pruned, text[:24, :12], "mean-update")
    trained = pyprune.retrain(repaired, text=text, **FEW)
    assert torch.equal(trained.blocks[1].ffn.down.bias, repaired.blocks[1].ffn.down.bias)
    assert trained.pruning == repaired.pruning


@pytest.mark.slow
def test_gradient_checkpointing_changes_no_result(llama, text):
    plain, checkpointed = (
        retrain_with_report(llama, text=text, gradient_checkpointing=which, eval_steps=1, **FEW).curve
        for which in (False, True)
    )
    # Of losses, not of weights: AdamW makes a whole step of a gradient that is nothing but rounding.
    for name in ("loss", "held_out"):
        pairs = [(getattr(a, name), getattr(b, name)) for a, b in zip(plain[1:], checkpointed[1:], strict=True)]
        assert_same_but_for_rounding(*torch.tensor(pairs, dtype=torch.float64).T)


def test_a_bf16_checkpoint_is_merged_in_float32_and_rounded_once(llama, text):
    small = llama.to(torch.bfloat16)
    wide = pyprune.retrain(small.to(torch.float32), text=text, precision="bf16", **FEW)
    trained = pyprune.retrain(small, text=text, **FEW)
    assert trained.dtype == torch.bfloat16
    assert same(trained, wide.to(torch.bfloat16))


def test_adapters_alone_are_peft_s(llama, text, tmp_path):
    from peft import PeftModel

    trained = pyprune.retrain(llama, text=text, adapters=tmp_path / "adapters", **FEW)
    model = PeftModel.from_pretrained(pyprune.to_transformers(copied(llama)), tmp_path / "adapters")
    merged = pyprune.load(model.merge_and_unload())
    assert all(
        torch.allclose(a, b, atol=1e-7) for (_, a), (_, b) in zip(merged.tensors(), trained.tensors(), strict=True)
    )


def test_the_random_numbers_of_the_caller_stay(llama, text):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    pyprune.retrain(llama, text=text, **FEW)
    assert torch.equal(torch.rand(3), expected)


def test_training_passes_over_all_samples_before_it_repeats_one():
    order = list(ordered(7, 20, 3))
    assert sorted(order[:7]) == sorted(order[7:14]) == list(range(7))
    assert order[:7] != order[7:14]


def test_a_model_that_transformers_runs_learns_too(text, tmp_path):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=61, hidden_size=24, num_hidden_layers=4, num_attention_heads=4, intermediate_size=32,
        max_position_embeddings=64, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    original = pyprune.load_any(GPTNeoXForCausalLM(config).eval())
    before = [tensor.clone() for _, tensor in original.tensors()]
    pruned = pyprune.apply(original, Pruning(blocks=(1,)))
    for full in (False, True):
        result = retrain_with_report(pruned, text=text, cutoff=12, steps=12, batch=8, micro_batch=8, full=full,
                                     learning_rate=1e-2, out=tmp_path / str(full))  # fmt: skip
        losses = [point.loss for point in result.curve[1:]]
        assert sum(losses[-3:]) < sum(losses[:3])
        loaded = pyprune.load_any(tmp_path / str(full))
        assert [block.index for block in loaded.blocks] == [0, 2, 3]
        assert same(loaded, result.decoder)
    assert all(torch.equal(a, b) for a, (_, b) in zip(before, original.tensors(), strict=True))
