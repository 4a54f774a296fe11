"""Distillation of tiny pruned models against plain transformers computations in the same dtype and in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

import pyprune
from pyprune import InputError, Pruning
from pyprune.models.transformers_model import to_transformers
from pyprune.retraining import prefix
from pyprune.retraining.objectives.distillation import Distillation
from tests import seeds
from tests.judge import TINY_OF_MODELS, assert_no_worse_than_torch, assert_same_but_for_rounding

SIZES = "shape:hidden=24,blocks=6,heads=4,kv_heads=2,head_dim=6,ffn=37,vocab=97"
FAMILIES = {
    "llama": SIZES,
    "tied": SIZES + ",tied=1",
    "mistral": SIZES + ",family=mistral,window=5",
    "qwen3": SIZES + ",family=qwen3",
}
PRUNINGS = {
    "block": Pruning(blocks=(3,)),
    "sublayers": Pruning(mha=(2,), ffn=(4,)),
    "last": Pruning(blocks=(5,)),
    "first": Pruning(blocks=(0,)),
}


@pytest.fixture
def llama():
    return pyprune.load(SIZES, dtype=torch.float32)


def batch_of(padded: bool = True):
    """Two sequences of 11 tokens, the second padded by 4 on the left; prompts of 3 tokens are not predicted."""
    ids = torch.randint(0, 97, (2, 11), generator=seeds.generator(7))
    mask = torch.ones_like(ids)
    if padded:
        mask[1, :4] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[0, :3] = labels[1, :7] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def changed(student):
    """The student with other weights from its first cut on, so that its own loss is not zero anywhere."""
    first = prefix.first_cut(student)
    draw = seeds.generator(8)
    places = {block.index: place for place, block in enumerate(student.blocks)}

    def change(block):
        if places[block.index] < first:
            return block
        return block.map(lambda t: t * (1 + 0.1 * torch.randn(t.shape, generator=draw)))

    return student.map_blocks(change)


def trained(student, first: int = 0):
    """A transformers model of the student whose layers from `first` on train."""
    model = to_transformers(student.map(torch.clone))
    for name, parameter in model.named_parameters():
        layer = name.split(".")[2] if name.startswith("model.layers.") else None
        parameter.requires_grad_(layer is not None and int(layer) >= first)
    return model


def streams(model, batch):
    """The streams behind all layers, the last one before the final norm, and the logits."""
    seen = []
    hooks = [layer.register_forward_hook(lambda *a: seen.append(a[-1][0] if isinstance(a[-1], tuple) else a[-1]))
             for layer in model.model.layers]  # fmt: skip
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    for hook in hooks:
        hook.remove()
    return seen, logits


def plain(objective, teacher, model, student, batch):
    """The loss by whole logits or streams of two transformers models."""
    with torch.no_grad():
        taught, teacher_logits = streams(to_transformers(teacher), batch)
    behind, logits = streams(model, batch)
    predicted = batch["labels"][:, 1:] != -100
    rows, teacher_rows = logits[:, :-1][predicted], teacher_logits[:, :-1][predicted]
    loss = F.cross_entropy(rows, batch["labels"][:, 1:][predicted])
    if objective.kind == "hidden":
        originals = [block.index for block in pyprune.index_map(student)]
        originals[-1] = len(taught) - 1
        real = batch["attention_mask"].bool()
        first = len(behind) - len(originals) + objective_first(objective, model)
        errors = [
            ((x[real] - taught[original][real]).square().sum(-1) / taught[original][real].square().sum(-1)).mean()
            for x, original in list(zip(behind, originals, strict=True))[first:]
        ]
        taught_loss = torch.stack(errors).mean()
    else:
        p = (rows / objective.temperature).softmax(-1)
        q = (teacher_rows / objective.temperature).softmax(-1)
        if objective.kind == "reverse-kl":
            p, q = q, p
        taught_loss = objective.temperature**2 * (q * (q.log() - p.log())).sum(-1).mean()
    return (1 - objective.weight) * loss + objective.weight * taught_loss


def objective_first(objective, model):
    return min(objective.shared, prefix.frozen_blocks(model))


def gradients(model, loss):
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, parameters)
    return torch.cat([loss.detach().reshape(1), *(g.flatten() for g in found)])


def forms():
    """Llama in every form, and every other family in one."""
    kinds = ("forward-kl", "reverse-kl", "hidden")
    yield from itertools.product(["llama"], kinds, PRUNINGS, [False])
    yield from itertools.product(["llama"], kinds, ["block", "sublayers", "last"], [True])  # the first is the cut
    yield from itertools.product([family for family in FAMILIES if family != "llama"], kinds[::2], ["block"], [False])


@pytest.mark.parametrize(("family", "kind", "pruning", "from_cut"), list(forms()))
def test_loss_and_gradients_are_those_of_two_whole_models(family, kind, pruning, from_cut):
    teacher = pyprune.load(FAMILIES[family], dtype=torch.float32)
    student = changed(pyprune.apply(teacher, PRUNINGS[pruning]))
    temperature = 1.0 if kind == "hidden" else 1.5
    objective = Distillation(teacher, student, kind, temperature=temperature, weight=0.4)
    first = prefix.first_cut(student)
    assert objective.shared == first
    batch = batch_of()
    model = trained(student, first if from_cut else 0)
    ours = gradients(model, objective(model, batch))
    theirs = gradients(model, plain(objective, teacher, model, student, batch))
    double = trained(student.to(torch.float64), first if from_cut else 0)
    exact = gradients(double, plain(objective, teacher.to(torch.float64), double, student, batch))
    assert_no_worse_than_torch(ours, theirs, exact, tiny=4e-6)


def test_shared_blocks_are_run_once_and_not_by_the_student(llama, monkeypatch):
    student = pyprune.apply(llama, PRUNINGS["block"])
    model = trained(student, 3)
    ran = []
    for place, layer in enumerate(model.model.layers):
        layer.register_forward_hook(lambda *_, place=place: ran.append(place))
    Distillation(llama, student)(model, batch_of()).backward()
    assert ran == [3, 4]
    assert len(model.model.layers) == 5  # they are all there again
    ran.clear()
    Distillation(llama, student)(trained_hooked(model), batch_of())
    assert ran == [0, 1, 2, 3, 4]


def trained_hooked(model):
    for parameter in model.model.layers[0].parameters():
        parameter.requires_grad_()
    return model


@pytest.mark.parametrize("kind", ["forward-kl", "hidden"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(llama, kind, reentrant):
    student = changed(pyprune.apply(llama, PRUNINGS["block"]))
    objective, batch = Distillation(llama, student, kind), batch_of()
    model = trained(student, 3).train()
    expected = gradients(model, objective(model, batch))
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    objective(model, batch).backward()
    parts = [p.grad.flatten() for p in model.parameters() if p.requires_grad]
    assert_same_but_for_rounding(torch.cat(parts), expected[1:])


def test_the_teacher_is_never_changed_and_may_be_bfloat16(llama):
    teacher = llama.to(torch.bfloat16)
    before = [tensor.clone() for _, tensor in teacher.tensors()]
    student = pyprune.apply(teacher, PRUNINGS["block"]).to(torch.float32)
    objective = Distillation(teacher, student, top_k=9)
    assert objective.shared == 3
    model = trained(student, 3)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(4):
        loss = objective(model, batch_of())
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert all(torch.equal(a, b) for a, (_, b) in zip(before, teacher.tensors(), strict=True))


def test_an_equal_student_has_nothing_to_learn(llama):
    for kind in ("forward-kl", "reverse-kl", "hidden"):
        objective = Distillation(llama, llama, kind, weight=1.0)
        # Of differences of logarithms of probabilities, which are about log(vocabulary) each.
        assert float(objective(trained(llama), batch_of()).detach()) < TINY_OF_MODELS * math.log(llama.vocab_size)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "kl"}, "loss 'kl': forward-kl, reverse-kl, hidden"),
        ({"top_k": 0}, "top_k 0"),
        ({"top_k": 97}, "top_k 97: 1 to 96"),
        ({"temperature": 0}, "temperature 0"),
        ({"temperature": float("inf")}, "temperature inf"),
        ({"weight": 1.5}, "weight 1.5"),
        ({"weight": 0.0}, "weight 0.0"),
        ({"kind": "hidden", "top_k": 3}, "top_k and temperature"),
    ],
)
def test_bad_options_are_named(llama, options, words):
    with pytest.raises(InputError, match=words):
        Distillation(llama, pyprune.apply(llama, PRUNINGS["block"]), **options)


def test_a_teacher_of_another_vocabulary_or_without_the_blocks_is_refused(llama):
    student = pyprune.apply(llama, PRUNINGS["block"])
    other = pyprune.load(SIZES.replace("vocab=97", "vocab=96"), dtype=torch.float32)
    with pytest.raises(InputError, match="96 tokens"):
        Distillation(other, student)
    with pytest.raises(InputError, match="lacks block 4"):
        Distillation(pyprune.apply(llama, Pruning(blocks=(4,))), student, "hidden")


def test_the_first_cut(llama):
    for pruning, place in (("block", 3), ("sublayers", 2), ("last", 4), ("first", 0)):
        assert prefix.first_cut(pyprune.apply(llama, PRUNINGS[pruning])) == place
    assert prefix.first_cut(pyprune.apply(llama, Pruning(neurons={1: (0, 2)}))) == 1
    with pytest.raises(InputError, match="nothing was removed"):
        prefix.first_cut(llama)
