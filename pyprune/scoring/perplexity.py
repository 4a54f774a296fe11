"""Perplexity of one decoder, and of every "decoder without unit n" at once.

The paper's criterion (Shortened LLaMA, section 3.1, PPL) runs the whole model once for each unit that might go. Here
all of them go together, in layer-major order: at block j one batch holds the unpruned states and those of every
candidate whose unit lies before j (the others still equal the unpruned ones, so their prefixes are shared). Every
block's weights are read once, and the head's logits are summed tile by tile without being stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyprune import ops
from pyprune.errors import InputError
from pyprune.models import as_decoder
from pyprune.models.decoder import Decoder
from pyprune.pruning.budget import unit_parameters
from pyprune.pruning.pruning import original_name
from pyprune.runtime import memory
from pyprune.runtime.inputs import bool_mask, check_ids
from pyprune.runtime.sequence import activation_dtype, add_ffn, add_mha, embed, run_block
from pyprune.scoring.calibration import fingerprint
from pyprune.scoring.scores import UNITS, Scores

Progress = Callable[[int, int], None]

CHUNK_ROWS = {"cpu": 2560, "cuda": 16384}
"""Rows that go through a block together: enough for GEMM to run at full speed, few enough for caches and memory."""


@torch.inference_mode()
def score(
    model: Any,
    input_ids: Tensor,
    criterion: str = "ppl",
    unit: str = "block",
    attention_mask: Tensor | None = None,
    *,
    calibration: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Perplexity of the model without each unit: the lower, the more removable the unit.

    model: a Decoder, a loaded PreTrainedModel (left unchanged), or whatever `pyprune.load` takes. input_ids: `[S, T]`,
    S samples of T >= 2 tokens. unit: "block", "mha" or "ffn". attention_mask: `[S, T]`, 0 where a token is padding.
    calibration: the fingerprint to keep with the result (made from `input_ids` when None). progress: called with
    (steps done, steps in all). Equal to one forward pass per removed unit within float32 rounding.

    Raises InputError for an unknown criterion or unit, ids outside the vocabulary, or no predicted position.
    Source: Shortened LLaMA, section 3.1, perplexity: exp(mean negative log-likelihood over all predicted positions).
    """
    if criterion != "ppl":
        raise InputError(f"criterion: {criterion!r} given; 'ppl' is accepted")
    if unit not in UNITS:
        raise InputError(f"unit: {unit!r} given; {', '.join(UNITS)} are accepted")
    decoder = as_decoder(model)
    input_ids, mask = check_samples(decoder, input_ids, attention_mask)
    found = unit_parameters(decoder, unit)
    if not found:
        raise InputError(f"unit: {unit!r} given, but {decoder.name} has none")
    memory.require(needed_bytes(decoder, input_ids.shape, len(found)), decoder.device, f"scoring {decoder.name}")
    steps = _Steps(progress, _passes(decoder, unit) + len(found) + 1)
    states = _candidate_states(decoder, input_ids, mask, unit, steps)
    values = [_perplexity(decoder, state, input_ids, mask, steps) for state in states]
    return Scores(
        model=original_name(decoder),
        criterion=criterion,
        unit=unit,
        baseline=values[0],
        units=[(unit, index) for index in found],
        values=values[1:],
        calibration=calibration or fingerprint(input_ids),
        parameters=decoder.parameters(),
        unit_parameters=list(found.values()),
    )


@torch.inference_mode()
def perplexity(
    model: Any, input_ids: Tensor, attention_mask: Tensor | None = None, *, progress: Progress | None = None
) -> float:
    """exp(mean negative log-likelihood) over all predicted positions of `input_ids [S, T]`, T >= 2.

    Errors as in `score`. progress: called with (samples done, samples in all).
    """
    decoder = as_decoder(model)
    input_ids, mask = check_samples(decoder, input_ids, attention_mask)
    samples, tokens = input_ids.shape
    cos, sin = decoder.rope.tables(tokens, prompt=tokens)
    total, count = 0.0, 0
    size = _chunk(decoder, tokens)
    for start in range(0, samples, size):
        part = slice(start, start + size)
        seen = None if mask is None else mask[part]
        x = embed(decoder, input_ids[part])
        for block in decoder.blocks:
            x = run_block(block, x, cos, sin, decoder.eps, seen)
        loss, predicted = _loss(decoder, x, input_ids[part], seen)
        total, count = total + loss, count + predicted
        if progress is not None:
            progress(min(start + size, samples), samples)
    return _exp(total / count)


def needed_bytes(decoder: Decoder, shape: tuple[int, int], candidates: int) -> int:
    """About what `score` allocates beyond the model: the states of all candidates, and one chunk at its widest.

    shape: samples and tokens.
    """
    samples, tokens = shape
    rows = samples * tokens
    size = activation_dtype(decoder).itemsize
    widths = [b.ffn.width for b in decoder.blocks if b.ffn is not None] + [decoder.hidden_size]
    chunk = rows * min(candidates + 1, _chunk(decoder, rows))
    workspace = chunk * (3 * max(widths) + 4 * decoder.hidden_size) * 4
    return (candidates + 1) * rows * decoder.hidden_size * size + workspace


def _chunk(decoder: Decoder, rows: int) -> int:
    """How many groups of `rows` rows go through a block together."""
    return max(1, CHUNK_ROWS.get(decoder.device.type, CHUNK_ROWS["cuda"]) // rows)


def check_samples(decoder: Decoder, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Ids `[S, T]`, padding as 0, and the mask as bool `[S, T]` or None; InputError for what cannot be scored."""
    mask = None if attention_mask is None else bool_mask(input_ids, attention_mask)
    if mask is not None:
        input_ids = input_ids.masked_fill(~mask, 0)
    check_ids(input_ids, decoder.vocab_size)
    tokens = input_ids.shape[1]
    if tokens < 2:
        raise InputError(f"input_ids: {tokens} token a sample given; at least 2 are needed to predict one")
    if tokens > decoder.max_positions:
        raise InputError(
            f"input_ids: {tokens} tokens a sample given; up to {decoder.max_positions}, the model's context, are"
            " accepted"
        )
    if mask is not None and not bool((mask[:, 1:] & mask[:, :-1]).any()):
        raise InputError("attention_mask: no token follows another one; at least one predicted position is needed")
    return input_ids, mask


def _candidate_states(decoder: Decoder, input_ids: Tensor, mask: Tensor | None, unit: str, steps: _Steps) -> Tensor:
    """Final states `[1 + candidates, S, T, hidden]`: the unpruned model's, then those without each unit in turn."""
    tokens = input_ids.shape[1]
    cos, sin = decoder.rope.tables(tokens, prompt=tokens)
    first = embed(decoder, input_ids)
    count = len(unit_parameters(decoder, unit))
    states = first.new_empty(1 + count, *first.shape)
    states[0] = first
    alive = 1  # states[:alive] have diverged or are the unpruned ones; states[alive] is the next candidate's place
    size = _chunk(decoder, first.shape[0] * first.shape[1])

    def update(half: Callable[[Tensor, Tensor | None], Tensor]) -> None:
        for start in range(0, alive, size):
            part = states[start : min(start + size, alive)]
            flat = part.flatten(0, 1)
            seen = None if mask is None else mask.repeat(len(part), 1)
            part.copy_(half(flat, seen).view_as(part))

    for block in decoder.blocks:
        if unit == "block" or (unit == "mha" and block.mha is not None):
            states[alive] = states[0]
        if block.mha is not None:
            update(lambda x, seen, mha=block.mha: add_mha(mha, x, cos, sin, decoder.eps, seen))
            if unit == "mha":
                alive += 1
        if unit == "ffn" and block.ffn is not None:
            states[alive] = states[0]
        if block.ffn is not None:
            update(lambda x, seen, ffn=block.ffn: add_ffn(ffn, x, decoder.eps))
        if unit == "block" or (unit == "ffn" and block.ffn is not None):
            alive += 1
        steps.advance(alive)
    return states


def _passes(decoder: Decoder, unit: str) -> int:
    """What `_candidate_states` advances by in all: the states alive after each block."""
    total, alive = 0, 1
    for block in decoder.blocks:
        alive += unit == "block" or getattr(block, unit) is not None
        total += alive
    return total


def _perplexity(decoder: Decoder, x: Tensor, input_ids: Tensor, mask: Tensor | None, steps: _Steps) -> float:
    loss, count = _loss(decoder, x, input_ids, mask)
    steps.advance(1)
    return _exp(loss / count)


def _loss(decoder: Decoder, x: Tensor, input_ids: Tensor, mask: Tensor | None) -> tuple[float, int]:
    """Summed negative log-likelihood of tokens 1 .. T-1 under final states x `[S, T, hidden]`, and their number."""
    targets = input_ids[:, 1:].to(x.device, torch.int64)
    if mask is not None:
        targets = targets.masked_fill(~(mask[:, 1:] & mask[:, :-1]).to(x.device), -100)
    losses = ops.linear_cross_entropy(
        x[:, :-1].contiguous(), decoder.head.weight, targets.contiguous(), decoder.norm, decoder.eps, decoder.head.bias
    )
    return float(losses.double().sum()), int((targets != -100).sum())


def _exp(mean_loss: float) -> float:
    if math.isnan(mean_loss):
        raise ArithmeticError("the loss is not a number: activations overflow; float32 or bfloat16 weights may help")
    return math.exp(mean_loss) if mean_loss < 709 else math.inf


class _Steps:
    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def advance(self, steps: int) -> None:
        self.done += steps
        if self.progress is not None:
            self.progress(self.done, self.total)
