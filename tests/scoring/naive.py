"""Candidates and measures by their definitions: transformers' model with one edit at a time, its logits whole."""

from __future__ import annotations

import contextlib
import math

import torch
import torch.nn.functional as F

from pyprune import Pruning, apply, to_transformers


class Attention(torch.nn.Module):
    """A function of states in the place of transformers' attention."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, hidden_states, **_):
        return self.function(hidden_states), None


class Mapped(torch.nn.Module):
    """A function of states in the place of an MLP or, with x added, of a layer."""

    def __init__(self, function, residual=False):
        super().__init__()
        self.function, self.residual = function, residual

    def forward(self, hidden_states, *_, **__):
        mapped = self.function(hidden_states)
        return hidden_states + mapped if self.residual else mapped


def edited(decoder, candidate, dtype=torch.float32):
    """transformers' model as a candidate leaves it; functions give what is added to the residual stream."""
    if isinstance(candidate, Pruning):
        return to_transformers(apply(decoder, candidate).to(dtype).map(torch.clone), "sdpa")
    model = to_transformers(decoder.to(dtype).map(torch.clone), "sdpa")
    for (index, kind), function in candidate.items():
        place = [block.index for block in decoder.blocks].index(index)
        layer = model.model.layers[place]
        function = function or torch.zeros_like
        if kind == "mha":
            layer.input_layernorm, layer.self_attn = torch.nn.Identity(), Attention(function)
        elif kind == "ffn":
            layer.post_attention_layernorm, layer.mlp = torch.nn.Identity(), Mapped(function)
        else:
            layer.forward = Mapped(function, residual=True).forward
    return model


def outputs(model, ids, mask=None):
    """Logits and last states behind the final norm, float64."""
    with torch.no_grad(), contextlib.suppress(AttributeError):
        result = model(ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
        return result.logits.double(), result.hidden_states[-1].double()
    raise AssertionError("a model that gives logits and hidden states is expected")


def perplexity(logits, ids, mask=None):
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    if mask is not None:
        losses = losses[(mask[:, 1:] * mask[:, :-1]) == 1]
    return math.exp(losses.mean())


def measures(candidate, original, ids, mask=None, labels=None):
    """Every measure from logits and last states, each `[S, T, .]`, of a candidate and of the original."""
    (logits, states), (original_logits, original_states) = candidate, original
    counted = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask == 1
    p, q = original_logits.log_softmax(-1), logits.log_softmax(-1)
    squares = (logits - original_logits).square().sum(-1).masked_fill(~counted, 0).sum(1)
    result = {
        "ppl": perplexity(logits, ids, mask),
        "kl": float((p.exp() * (p - q)).sum(-1)[counted].mean()),
        "cosine": float(1 - F.cosine_similarity(states, original_states, dim=-1)[counted].mean()),
        "top1": float((logits.argmax(-1) != original_logits.argmax(-1))[counted].double().mean()),
        "finercut": float(squares.sqrt()[counted.any(1)].mean()),
    }
    if labels is not None:
        targets = labels[:, 1:]
        if mask is not None:
            targets = targets.masked_fill((mask[:, 1:] * mask[:, :-1]) == 0, -100)
        result["task-loss"] = float(F.cross_entropy(logits[:, :-1].transpose(1, 2), targets, ignore_index=-100))
    return result
