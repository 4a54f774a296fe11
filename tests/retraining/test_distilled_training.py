"""`retrain` with a teacher, and with blocks left out of the training, on tiny models."""

from __future__ import annotations

import pytest
import torch

import pyprune
from pyprune import InputError, Pruning
from pyprune.retraining import retrain_with_report
from pyprune.retraining.adapters import trainable
from pyprune.retraining.iterate import iterate
from pyprune.retraining.objectives import NextToken
from pyprune.retraining.objectives.behind_frozen import NextTokenBehindFrozen
from pyprune.retraining.prefix import frozen_blocks
from pyprune.retraining.samples import collated, text_sample
from pyprune.retraining.settings import Settings
from tests import seeds
from tests.judge import assert_same_but_for_rounding

pytest.importorskip("peft")

SIZES = "shape:hidden=24,blocks=5,heads=4,kv_heads=2,head_dim=6,ffn=37,vocab=97"
FEW = {"steps": 3, "batch": 4, "micro_batch": 2, "cutoff": 12, "learning_rate": 1e-2, "held_out": 2}


@pytest.fixture
def teacher():
    return pyprune.load(SIZES, dtype=torch.float32)


@pytest.fixture
def text():
    return torch.randint(0, 97, (400,), generator=seeds.generator(4))


def same(block, other):
    return all(torch.equal(x, y) for (_, x), (_, y) in zip(block.tensors(), other.tensors(), strict=True))


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("kind", ["forward-kl", "hidden"])
def test_only_what_is_behind_the_cut_changes(teacher, text, full, kind):
    before = [tensor.clone() for _, tensor in teacher.tensors()]
    student = pyprune.apply(teacher, Pruning(blocks=(2,)))
    report = retrain_with_report(
        student, text=text, distill_from=teacher, distill_loss=kind, train_from="first-cut", full=full, **FEW
    )
    result = report.decoder
    assert result.pruning == student.pruning
    assert torch.equal(result.embedding, student.embedding)
    assert [same(a, b) for a, b in zip(result.blocks, student.blocks, strict=True)] == [True, True, False, False]
    assert all(torch.equal(x, y) for x, (_, y) in zip(before, teacher.tensors(), strict=True))
    assert report.to_dict()["distillation"]["kind"] == kind


def test_from_the_cut_on_a_shared_prefix_trains_as_without_sharing(teacher, text, monkeypatch):
    student = pyprune.apply(teacher, Pruning(blocks=(2,)))
    options = {"distill_from": teacher, "train_from": "first-cut", "lora_dropout": 0.0, **FEW}
    shared = retrain_with_report(student, text=text, **options)
    monkeypatch.setattr("pyprune.retraining.objectives.distillation.frozen_blocks", lambda model: 0)
    alone = retrain_with_report(student, text=text, **options)
    for one, other in zip(shared.curve, alone.curve, strict=True):
        assert one.loss is None or abs(one.loss - other.loss) < 1e-4 * abs(other.loss)


def test_from_the_cut_on_frozen_blocks_are_run_by_the_operators_alone(teacher, text, monkeypatch):
    student = pyprune.apply(teacher, Pruning(blocks=(2,)))
    options = {"train_from": "first-cut", "lora_dropout": 0.0, "eval_steps": 1, **FEW}
    frozen = []

    def counted(model):
        frozen.append(frozen_blocks(model))
        return frozen[-1]

    module = "pyprune.retraining.objectives.behind_frozen"
    monkeypatch.setattr(f"{module}.frozen_blocks", counted)
    ours = retrain_with_report(student, text=text, **options)
    assert set(frozen) == {2}
    monkeypatch.setattr(f"{module}.frozen_blocks", lambda model: 0)
    plain = retrain_with_report(student, text=text, **options)
    for name in ("loss", "held_out"):
        pairs = [(getattr(a, name), getattr(b, name)) for a, b in zip(ours.curve[1:], plain.curve[1:], strict=True)]
        assert_same_but_for_rounding(*torch.tensor(pairs, dtype=torch.float64).T)


@pytest.mark.parametrize("family", ["llama", "mistral,window=5", "qwen3"])
@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
def test_behind_frozen_blocks_loss_and_gradients_are_the_plain_ones(family, full):
    decoder = pyprune.load(f"{SIZES},family={family}", dtype=torch.float32)
    network = trainable(decoder, Settings(train_from=3, full=full, lora_dropout=0.0)).eval()
    draw = seeds.generator(6)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=draw)
    rows = [torch.randint(0, 97, (length,), generator=draw).numpy() for length in (12, 7)]
    batch = collated([text_sample(row) for row in rows], 0)  # one is padded
    run_at_first = []
    layers = (network if full else network.get_base_model()).base_model.layers
    layers[0].register_forward_hook(lambda *_: run_at_first.append(True))
    found = []
    for objective in (NextToken(), NextTokenBehindFrozen(decoder=decoder)):
        network.zero_grad()
        loss = objective(network, batch)
        loss.backward()
        gradients = [parameter.grad for parameter in network.parameters() if parameter.requires_grad]
        found.append(torch.cat([loss.detach()[None], *(part.flatten() for part in gradients)]))
    assert run_at_first == [True]  # in the plain way alone
    assert_same_but_for_rounding(*found)


def test_a_resumed_distillation_needs_the_same_teacher(teacher, text, tmp_path):
    student = pyprune.apply(teacher, Pruning(blocks=(2,)))
    options = {"text": text, "save_seconds": 0, "resume": tmp_path / "state", **FEW}
    whole = retrain_with_report(student, distill_from=teacher, **options)
    again = retrain_with_report(student, distill_from=teacher, **options)  # the state is of the end
    assert all(same(a, b) for a, b in zip(whole.decoder.blocks, again.decoder.blocks, strict=True))
    other = teacher.map_blocks(lambda block: block if block.index < 4 else block.map(lambda t: t * 2))
    with pytest.raises(InputError, match="with teacher"):
        retrain_with_report(student, distill_from=other, **options)


def test_what_gets_no_gradient_is_kept_too(teacher, text, tmp_path):
    student = pyprune.apply(teacher, Pruning(blocks=(2,)))
    options = {
        "text": text, "distill_from": teacher, "distill_loss": "hidden", "distill_weight": 1.0, "full": True,
        "save_seconds": 0, "resume": tmp_path / "state", **FEW,
    }  # fmt: skip
    whole = retrain_with_report(student, **options).decoder
    again = retrain_with_report(student, **options).decoder
    assert torch.equal(whole.head.weight, student.head.weight)  # the streams alone were compared
    assert all(torch.equal(x, y) for (_, x), (_, y) in zip(whole.tensors(), again.tensors(), strict=True))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"train_from": "cut"}, "train_from 'cut'"),
        ({"train_from": 4}, "0 to 3 are accepted"),
        ({"distill_loss": "hidden"}, "no model to distill from"),
        ({"temperature": 2.0}, "no model to distill from"),
    ],
)
def test_bad_options_are_named(teacher, text, options, words):
    with pytest.raises(InputError, match=words):
        retrain_with_report(pyprune.apply(teacher, Pruning(blocks=(2,))), text=text, **{**FEW, **options})


def test_an_unpruned_model_has_no_first_cut(teacher, text):
    with pytest.raises(InputError, match="first cut"):
        retrain_with_report(teacher, text=text, train_from="first-cut", **FEW)


@pytest.mark.slow
def test_iterate_trains_by_retrain_with_the_original_as_teacher(teacher, text):
    ids, held_out = (torch.randint(0, 97, (4, 9), generator=seeds.generator(n)) for n in (1, 2))
    few = {name: value for name, value in FEW.items() if name not in ("steps", "held_out")}
    result = iterate(teacher, ids, held_out=held_out, count=2, steps=2, text=text, distill=True, seed=3, **few)
    first = pyprune.apply(teacher, Pruning(blocks=(result.rounds[0].removed[1],)))
    trained = retrain_with_report(first, text=text, distill_from=teacher, seed=4, steps=2, held_out=0, **few).decoder
    assert result.rounds[0].retrained == pyprune.perplexity(trained, held_out)
