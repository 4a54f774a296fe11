"""The fused loss against PyTorch's own, and its gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pyprune.retraining.linear_cross_entropy import linear_cross_entropy
from tests import seeds
from tests.judge import assert_no_worse_than_torch

MAPS = [(1.0, None), (0.25, None), (1.0, 2.0), (1.7, 3.0)]


def inputs(dtype, rows=11, hidden=7, vocab=23):
    generator = seeds.generator(2)
    h, w, b = (
        torch.randn(*shape, dtype=torch.float64, generator=generator)
        for shape in ((rows, hidden), (vocab, hidden), (vocab,))
    )
    targets = torch.randint(0, vocab, (rows,), generator=generator)
    targets[[0, 4]] = -100
    return [tensor.to(dtype).requires_grad_() for tensor in (h, w, b)], targets


def plain(h, w, b, targets, scale, cap):
    z = F.linear(h, w, b) * scale
    z = z if cap is None else torch.tanh(z / cap) * cap
    return F.cross_entropy(z, targets, ignore_index=-100)


@pytest.mark.parametrize(("scale", "cap", "tile"), [(*MAPS[0], 1), (*MAPS[0], 100), *((*m, 4) for m in MAPS)])
def test_its_gradients_in_float64(scale, cap, tile):
    leaves, targets = inputs(torch.float64)

    def loss(h, w, b):
        return linear_cross_entropy(h, w, targets, b, scale=scale, cap=cap, tile_rows=tile)

    assert torch.autograd.gradcheck(loss, leaves)
    assert torch.allclose(loss(*leaves), plain(*leaves, targets, scale, cap), rtol=1e-12)


@pytest.mark.parametrize(("scale", "cap"), MAPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_it_is_no_worse_than_pytorch(dtype, scale, cap):
    leaves, targets = inputs(dtype, 64, 40, 90)

    def gradients(tensors, function):
        return torch.autograd.grad(function(*tensors), tensors)

    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    ours = gradients(leaves, lambda h, w, b: linear_cross_entropy(h, w, targets, b, scale=scale, cap=cap, tile_rows=9))
    theirs = gradients(leaves, lambda *tensors: plain(*tensors, targets, scale, cap))
    reference = gradients(exact, lambda *tensors: plain(*tensors, targets, scale, cap))
    for result, peer, truth in zip(ours, theirs, reference, strict=True):
        assert_no_worse_than_torch(result, peer, truth, dtype=dtype)


def test_rows_without_a_target_do_not_meet_the_head():
    (h, w, _), targets = inputs(torch.float32)
    with torch.no_grad():
        h[targets == -100] = float("nan")
    loss = linear_cross_entropy(h, w, targets)
    loss.backward()
    assert torch.isfinite(loss)
    assert (h.grad[targets == -100] == 0).all()


def test_without_any_target_the_loss_is_nothing():
    (h, w, _), targets = inputs(torch.float32)
    loss = linear_cross_entropy(h, w, torch.full_like(targets, -100))
    loss.backward()
    assert loss.item() == 0
    assert (h.grad == 0).all()


def test_without_gradients_it_is_the_same_loss():
    (h, w, b), targets = inputs(torch.float32)
    exact = plain(h.double(), w.double(), b.double(), targets, 1.0, None)
    for has_gradients in (False, True):
        with torch.set_grad_enabled(has_gradients):
            loss = linear_cross_entropy(h, w, targets, b)
        assert_no_worse_than_torch(loss, plain(h, w, b, targets, 1.0, None), exact)


def test_logits_never_exist_as_a_whole():
    rows, vocab = 64, 5000
    h = torch.randn(rows, 4, requires_grad=True)
    w = torch.randn(vocab, 4)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    with Watch():
        linear_cross_entropy(h, w, torch.zeros(rows, dtype=torch.int64), tile_rows=2).backward()
    assert largest <= max(2 * vocab, 4 * vocab) < rows * vocab
