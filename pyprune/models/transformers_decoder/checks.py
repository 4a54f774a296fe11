"""Whether a model may be run layer by layer: shown on a few tokens, once, before anything is computed with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.models.transformers_decoder.inputs import LayerInputs, captured, require_independent
from pyprune.models.transformers_decoder.structure import Structure, find_structure, label, ordinary_logits, traced

SAMPLES, TOKENS = 2, 11
"""The samples of the check; its tokens are as many as the model's context takes, at most."""

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference from the ordinary logits over the largest of these: the same modules run on the same shapes, so
no more than the rounding of another order of sums is accepted."""


@torch.no_grad()
def checked_structure(model: Any) -> Structure:
    """The structure of a model, if running it layer by layer gives what its own forward pass gives.

    InputError, with the reason, for a model that is not causal, whose layers pass anything but the hidden state on, or
    whose logits differ.
    """
    ids = sample_ids(model)
    trace = traced(model, ids)
    if not bool(trace.logits.isfinite().all()):
        raise InputError(f"{label(model)}: its logits are not finite; finite weights are expected")
    structure = find_structure(model, trace, (SAMPLES, ids.shape[1]))
    layers = {id(layer) for layer in structure.layers}
    real = [call.inputs for call in trace.calls if id(call.module) in layers]
    require_independent(model, structure, captured(model, structure, ids, None), real)
    inputs = LayerInputs(model, structure, ids, None)
    _require_equal(model, structure, inputs, trace.logits)
    _require_causal(model, ids, trace.logits)
    return structure


def _require_equal(model: Any, structure: Structure, inputs: LayerInputs, expected: Tensor) -> None:
    """InputError where layer by layer gives other logits.

    The samples go through each layer twice, the second time in another order: a layer that reads what an earlier one
    has left somewhere finds that of the wrong sample.
    """
    orders = [[0, 1], [1, 0]]
    states = [inputs.embedded[order].clone() for order in orders]
    for layer in range(len(structure.layers)):
        states = [inputs.call(layer, x, order) for x, order in zip(states, orders, strict=True)]
    for x, order in zip(states, orders, strict=True):
        apart = difference(head_logits(structure, x), expected[order])
        if not apart <= TOLERANCE[expected.dtype]:
            raise InputError(
                f"{label(model)}: run layer by layer it gives other logits (they differ by {apart:.1e} of the largest):"
                " its forward pass does more than its layers and its head"
            )


def _require_causal(model: Any, ids: Tensor, expected: Tensor) -> None:
    """InputError where the logits at a token depend on the tokens behind it."""
    changed = ids.clone()
    changed[:, -1] = ids.flip(0)[:, -1] if (ids[0, -1] != ids[1, -1]) else (ids[:, -1] + 1) % int(ids.max() + 1)
    apart = difference(ordinary_logits(model, changed)[:, :-1], expected[:, :-1])
    if not apart <= TOLERANCE[expected.dtype]:
        raise InputError(f"{label(model)}: its logits at a token depend on later tokens; a causal decoder is expected")


def sample_ids(model: Any, tokens: int = TOKENS) -> Tensor:
    """Random ids `[SAMPLES, T]`, T = `tokens` or the model's whole context, the same for the same model."""
    config = model.config.get_text_config(decoder=True)
    length = min(tokens, context_length(model) or tokens)
    vocabulary = min(config.vocab_size, model.get_input_embeddings().weight.shape[0])
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, (SAMPLES, length), generator=generator).to(model.device)


def context_length(model: Any) -> int | None:
    """The positions that a model's configuration names; None where it names none."""
    context = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return context if isinstance(context, int) and context > 0 else None


def head_logits(structure: Structure, x: Tensor) -> Tensor:
    """The model's logits of hidden states `[N, T, hidden]` behind its last layer."""
    return structure.logits(structure.head(structure.final(x)))


def difference(logits: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest expected value; NaN where either is."""
    return float((logits.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1e-30))
