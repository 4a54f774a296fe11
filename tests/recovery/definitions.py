"""Streams of small models, and least squares in float64, to judge repairs by their definitions."""

from __future__ import annotations

import torch

from pyprune import Pruning
from pyprune.runtime.sequence import attention_context, embed, ffn_activation, run_block
from tests.judge import TINY_OF_MODELS, assert_no_worse_than_torch

SIZES = "shape:hidden=20,blocks=5,heads=6,kv_heads=2,head_dim=6,ffn=23,vocab=53"
FAMILIES = {
    "llama": SIZES,
    "tied": SIZES + ",tied=1",
    "mistral": SIZES + ",family=mistral,window=5",
    "qwen2": SIZES + ",family=qwen2",
    "qwen3": SIZES + ",family=qwen3",
}
RIDGE = 0.05
GONE = [0, 4, 7, 22]
STAY = [neuron for neuron in range(23) if neuron not in GONE]
"""Neurons of block 1."""


class Run:
    """Streams of a decoder in the operators' float32, everything after that in float64."""

    def __init__(self, decoder, ids):
        self.decoder, self.x = decoder, embed(decoder, ids)
        self.rotation = decoder.rope.tables(ids.shape[1], prompt=ids.shape[1])

    def block(self, block):
        self.x = run_block(block, self.x, *self.rotation, self.decoder.eps)
        return self.x

    def context(self, mha):
        return attention_context(mha, self.x, *self.rotation, self.decoder.eps)


def ridge_fit(inputs, wished, weights, present, bias):
    """Weighted ridge regression on stacked rows, by QR of the design in place of normal equations."""
    a, y, w = (t.double().flatten(0, 1) for t in (inputs, wished, weights.unsqueeze(-1)))
    if bias is not None:
        a = torch.cat([a, torch.ones(len(a), 1, dtype=torch.float64)], 1)
        present = torch.cat([present, bias.unsqueeze(1)], 1)
    present = present.double()
    size = a.shape[1]
    mean = (a.square() * w).sum() / size
    penalty = torch.full((size,), (RIDGE * float(mean)) ** 0.5, dtype=torch.float64)
    if bias is not None:
        penalty[-1] = 0
    design = torch.cat([a * w.sqrt(), torch.diag(penalty)])
    wish = torch.cat([(y - a @ present.T) * w.sqrt(), torch.zeros(size, y.shape[1], dtype=torch.float64)])
    return present + torch.linalg.lstsq(design, wish, driver="gelsd").solution.T


def plain_fit(inputs, wished, weights, present, bias):
    """The same by PyTorch's products in float32: how much those lose depends on the ridge and on the inputs."""
    root = weights.flatten().sqrt().unsqueeze(1)
    a, y = (t.flatten(0, 1) * root for t in (inputs, wished))
    if bias is not None:
        a, present = torch.cat([a, root], 1), torch.cat([present, bias.unsqueeze(1)], 1)
    gram, cross, present = (a.T @ a).double(), (a.T @ y).double(), present.double()
    penalty = torch.full((len(gram),), RIDGE * float(gram.diagonal().mean()), dtype=torch.float64)
    if bias is not None:
        penalty[-1] = 0
    return present + torch.linalg.solve(gram + torch.diag(penalty), cross - gram @ present.T).T


def assert_fitted(linear, *design, onto=None):
    """The projection is the ridge regression of these rows, times `onto` where there is one."""
    exact, plain = ridge_fit(*design), plain_fit(*design)
    if onto is not None:
        exact, plain = exact @ onto.double(), plain @ onto.double()
    weight = linear.weight if linear.bias is None else torch.cat([linear.weight, linear.bias.unsqueeze(1)], 1)
    assert_no_worse_than_torch(weight, plain, exact, TINY_OF_MODELS)


def weights_of(target):
    return 1 / target.square().mean(-1)


def streams_at_ffn(original, ids):
    """Of block 1's FFN in the original: the run up to behind it, its down's input, the stream before and behind."""
    run = Run(original, ids)
    run.block(original.blocks[0])
    block = original.blocks[1]
    before = run.block(type(block)(1, block.mha, None))
    activation = ffn_activation(block.ffn, before, original.eps)
    return run, activation, before, run.block(type(block)(1, None, block.ffn))


def streams_at_cut(original, ids):
    """Without block 2: the FFN before the cut, its input, the stream it adds to, and the wish, of the original."""
    run, inputs, middle, x_pre = streams_at_ffn(original, ids)
    return original.blocks[1].ffn, inputs, middle, x_pre, run.block(original.blocks[2])


def narrowing():
    return Pruning(neurons={1: GONE}, kv_groups={3: (1,)})
