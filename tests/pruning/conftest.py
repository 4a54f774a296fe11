"""A tiny decoder made by hand, and the model's formulas, written apart from the package's own.

They compute in the dtype of what they are given: float64 is the reference, float32 what plain PyTorch makes of it.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pyprune.models.decoder import FFN, MHA, Block, Decoder, Linear, Rope
from tests import seeds

EPS = 1e-5


def _make(
    *,
    blocks=4,
    hidden=16,
    heads=6,
    kv_heads=3,
    head_dim=4,
    width=13,
    vocab=29,
    biases=False,
    qk_norm=False,
    window=0,
    tied=True,
    dtype=torch.float64,
    seed=0,
):
    generator = seeds.generator(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    def linear(out, inp):
        return Linear(random(out, inp) / inp**0.5, random(out) if biases else None)

    def block(index):
        mha = MHA(
            norm=1 + 0.1 * random(hidden),
            q=linear(heads * head_dim, hidden),
            k=linear(kv_heads * head_dim, hidden),
            v=linear(kv_heads * head_dim, hidden),
            o=linear(hidden, heads * head_dim),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            q_norm=1 + 0.1 * random(head_dim) if qk_norm else None,
            k_norm=1 + 0.1 * random(head_dim) if qk_norm else None,
            window=window,
        )
        ffn = FFN(1 + 0.1 * random(hidden), linear(width, hidden), linear(width, hidden), linear(hidden, width))
        return Block(index, mha, ffn)

    embedding = random(vocab, hidden)
    inv_freq = 10000.0 ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    return Decoder(
        name="tiny",
        config={
            "num_hidden_layers": blocks,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "intermediate_size": width,
            "hidden_size": hidden,
            "head_dim": head_dim,
        },
        embedding=embedding,
        blocks=tuple(block(index) for index in range(blocks)),
        norm=1 + 0.1 * random(hidden),
        head=Linear(embedding if tied else random(vocab, hidden)),
        tied=tied,
        rope=Rope(inv_freq),
        eps=EPS,
        max_positions=64,
    )


def _project(part, x):
    y = x @ part.weight.to(x.dtype).T
    return y if part.bias is None else y + part.bias.to(x.dtype)


def _rms(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.to(x.dtype)


def _context(mha, x, rope):
    """The input of the o projection: causal attention, within the window, one query head after the other."""
    samples, length, _ = x.shape
    normed = _rms(x, mha.norm)
    shape = (samples, length, -1, mha.head_dim)
    q, k, v = (_project(part, normed).view(shape) for part in (mha.q, mha.k, mha.v))
    if mha.q_norm is not None:
        q, k = _rms(q, mha.q_norm), _rms(k, mha.k_norm)
    angles = torch.outer(torch.arange(length).double(), rope.inv_freq.double()).to(x.dtype)

    def rotate(y):
        one, two = y.chunk(2, dim=-1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([one * cos - two * sin, two * cos + one * sin], dim=-1)

    query, key = torch.arange(length)[:, None], torch.arange(length)
    unseen = (key > query) | (key <= query - mha.window if mha.window else key < 0)
    outputs = []
    for head in range(mha.heads):
        group = head // (mha.heads // mha.kv_heads)
        scores = rotate(q[:, :, head]) @ rotate(k[:, :, group]).transpose(1, 2) / mha.head_dim**0.5
        outputs.append(scores.masked_fill(unseen, -torch.inf).softmax(-1) @ v[:, :, group])
    return torch.cat(outputs, dim=-1)


def _activation(ffn, x):
    """The input of the down projection."""
    normed = _rms(x, ffn.norm)
    gate = _project(ffn.gate, normed)
    return gate * torch.sigmoid(gate) * _project(ffn.up, normed)


def _run_block(block, x, rope):
    if block.mha is not None:
        x = x + _project(block.mha.o, _context(block.mha, x, rope))
    if block.ffn is not None:
        x = x + _project(block.ffn.down, _activation(block.ffn, x))
    return x


def _logits(decoder, input_ids, dtype=torch.float64):
    x = decoder.embedding.to(dtype)[input_ids]
    for block in decoder.blocks:
        x = _run_block(block, x, decoder.rope)
    return _project(decoder.head, _rms(x, decoder.norm))


@pytest.fixture
def make_decoder():
    """Builds a tiny random decoder (GQA, odd sizes, float64) from keyword sizes."""
    return _make


@pytest.fixture
def reference():
    """The formulas: `context`, `activation`, `project`, `run_block`, `logits`, `eps`."""
    return SimpleNamespace(
        context=_context, activation=_activation, project=_project, run_block=_run_block, logits=_logits, eps=EPS
    )
