"""Plain references for the criteria's tests: transformers' model in float64, and a decoder whose states are known."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from pyprune.models.decoder import FFN, Block, Decoder, Linear, Rope
from pyprune.models.transformers_model import to_transformers
from tests import seeds

SIZES = "shape:hidden=24,blocks=4,heads=6,kv_heads=2,head_dim=6,ffn=17,vocab=53"
FAMILIES = {
    "llama": SIZES,
    "tied": SIZES + ",tied=1",
    "mistral": SIZES + ",family=mistral,window=5",
    "qwen2": SIZES + ",family=qwen2,window=5,full_blocks=1",
    "qwen3": SIZES + ",family=qwen3",
}
PARTS = {
    "block": ("self_attn", "input_layernorm", "mlp", "post_attention_layernorm"),
    "mha": ("self_attn", "input_layernorm"),
    "ffn": ("mlp", "post_attention_layernorm"),
}


def ids(samples=4, tokens=9, vocab=53, seed=5):
    return torch.randint(0, vocab, (samples, tokens), generator=seeds.generator(seed))


def padding(input_ids):
    """Right padding of different lengths, so that samples predict 8, 5, 4 and 8 tokens of 9."""
    mask = torch.ones_like(input_ids)
    mask[1, 6:] = 0
    mask[2, 5:] = 0
    return mask


def model_of(decoder):
    """transformers' model in float64 on copies of the decoder's weights."""
    return to_transformers(decoder.to(torch.float64).map(torch.clone), "eager")


def kinds_of(unit):
    return {"mha+ffn": ("mha", "ffn")}.get(unit, (unit,))


def modules(model, decoder, unit):
    """(kind, original index) -> the named weights of the unit, biases aside, in transformers' model."""
    result = {}
    for place, block in enumerate(decoder.blocks):
        for kind in kinds_of(unit):
            if kind == "block" or getattr(block, kind) is not None:
                layer = model.model.layers[place]
                result[kind, block.index] = {
                    name: parameter
                    for name, parameter in layer.named_parameters()
                    if name.partition(".")[0] in PARTS[kind] and name.endswith("weight")
                }
    return result


def token_losses(model, input_ids, mask=None):
    """Negative log-likelihoods of all predicted positions, one list a sample."""
    logits = model(input_ids, attention_mask=mask).logits[:, :-1]
    losses = F.cross_entropy(logits.transpose(1, 2), input_ids[:, 1:], reduction="none")
    seen = torch.ones_like(losses) if mask is None else mask[:, 1:] * mask[:, :-1]
    return [one[row == 1] for one, row in zip(losses, seen, strict=True)]


def gradients(model, loss):
    """dL/dW under every parameter's own name within its layer's model."""
    named = dict(model.named_parameters())
    result = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
    return {id(parameter): gradient for parameter, gradient in zip(named.values(), result, strict=True)}


def constant_updates(*updates, norm=(1.0, 1.0)):
    """A decoder of hidden size 2, each of whose blocks adds one known vector to every token.

    Its five tokens are embedded as (1, 0), (0, 1), (3, 4), (0, -1/2) and (2, 2).
    """
    embedding = torch.tensor([[1, 0], [0, 1], [3, 4], [0, -0.5], [2, 2]])
    silu = 1 / (1 + math.exp(-1.0))

    def block(index, update):
        zero, one = torch.zeros(1, 2), torch.ones(1)
        down = torch.zeros(2, 1)
        bias = torch.tensor(update).float()
        return Block(
            index,
            None,
            FFN(torch.ones(2), Linear(zero, one), Linear(zero, one / silu), Linear(down, bias)),
        )

    return Decoder(
        name="constant",
        config={"num_hidden_layers": len(updates), "model_type": "llama"},
        embedding=embedding,
        blocks=tuple(block(index, update) for index, update in enumerate(updates)),
        norm=torch.tensor(norm).float(),
        head=Linear(embedding),
        tied=True,
        rope=Rope(torch.ones(1)),
        eps=0.0,
        max_positions=16,
    )
