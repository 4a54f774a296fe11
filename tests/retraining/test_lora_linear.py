"""The fused LoRA projection against its formula in float64, and against peft's own layers."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

import pyprune
from pyprune.ops.dropout import kept
from pyprune.retraining.adapters import ADAPTER, trainable
from pyprune.retraining.lora_linear import drawn_seed, fuse_adapters, lora_linear
from pyprune.retraining.settings import Settings
from tests import seeds
from tests.judge import assert_model_no_worse, assert_no_worse_than_torch, in_float64, with_exact_norms

SIZES = "shape:hidden=24,blocks=2,heads=4,kv_heads=2,head_dim=6,ffn=31,vocab=61,family=qwen2"


def inputs(dtype, rows=9, width=14, out=10, rank=3):
    generator = seeds.generator(4)
    shapes = ((rows, width), (out, width), (out,), (rank, width), (out, rank))
    return [torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype) for shape in shapes]


def by_formula(x, weight, bias, a, b, scale, p, seed):
    keep = kept(seed, *x.shape, p).to(x.dtype)
    return F.linear(x, weight, bias) + F.linear(F.linear(x * keep / (1 - p), a), b) * scale


def seed_of_next():
    state = torch.get_rng_state()
    seed = drawn_seed()
    torch.set_rng_state(state)
    return seed


@pytest.mark.parametrize("p", [0.0, 0.25])
def test_its_gradients_in_float64(p):
    x, weight, bias, a, b = inputs(torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (x, a, b)]
    state = torch.get_rng_state()

    def run(x, a, b):
        torch.set_rng_state(state)  # the same mask for every difference
        return lora_linear(x, weight, bias, a, b, 2.0, p)

    assert torch.autograd.gradcheck(run, leaves)
    torch.set_rng_state(state)
    expected = by_formula(x, weight, bias, a, b, 2.0, p, seed_of_next())
    assert torch.allclose(run(*leaves), expected, rtol=1e-12)


@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_it_is_no_worse_than_pytorch(dtype, p):
    tensors = inputs(dtype, 40, 64, 48, 8)
    exact = [tensor.double().requires_grad_() for tensor in tensors]
    plain = [tensor.clone().requires_grad_() for tensor in tensors]
    ours = [tensor.clone().requires_grad_(place in (0, 3, 4)) for place, tensor in enumerate(tensors)]
    seed = seed_of_next()
    result = lora_linear(*ours, 2.0, p)
    theirs, truth = by_formula(*plain, 2.0, p, seed), None
    keep = kept(seed, *plain[0].shape, p).double()
    x, weight, bias, a, b = exact
    truth = F.linear(x, weight, bias) + F.linear(F.linear(x * keep / (1 - p), a), b) * 2.0
    assert_no_worse_than_torch(result, theirs, truth, dtype=dtype)
    for y in (result, theirs, truth):
        y.square().sum().backward()
    for place in (0, 3, 4):
        assert_no_worse_than_torch(ours[place].grad, plain[place].grad, exact[place].grad, dtype=dtype)


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_the_model_is_peft_s(p):
    """With the same masks, which peft's layers are given, losses and gradients err no more than peft's."""
    decoder = pyprune.load(SIZES)
    theirs = trainable(decoder, Settings(lora_dropout=p)).train()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=seeds.generator(1))
    ours = copy.deepcopy(theirs)
    assert fuse_adapters(ours, ADAPTER) == 14
    for module in theirs.modules():
        if isinstance(getattr(module, "lora_dropout", None), torch.nn.ModuleDict) and p:
            module.lora_dropout[ADAPTER] = SameMask(p)
    exact = with_exact_norms(in_float64(theirs)).train()
    ids = torch.randint(0, 61, (2, 11), generator=seeds.generator(6))
    state = torch.get_rng_state()
    results = []
    for model in (ours, theirs, exact):
        torch.set_rng_state(state)
        logits = model(input_ids=ids).logits[:, :-1]  # transformers' own loss is float32 in float64 too
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.requires_grad]
        results.append((loss.detach(), torch.cat(gradients)))
    for result, plain, reference in zip(*results, strict=True):
        assert_model_no_worse(result, plain, reference)


class SameMask(torch.nn.Module):
    """Dropout with the masks of `lora_linear`."""

    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, x):
        keep = kept(drawn_seed(), x.shape[:-1].numel(), x.shape[-1], self.p).view(x.shape)
        return x * keep / (1 - self.p)
