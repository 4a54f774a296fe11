"""`score`: one way in for every criterion."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyprune.errors import InputError
from pyprune.models import as_decoder
from pyprune.scoring.perplexity import Progress, check_samples, perplexity_scores
from pyprune.scoring.scores import Scores


def score(
    model: Any,
    input_ids: Tensor,
    criterion: str = "ppl",
    unit: str = "block",
    attention_mask: Tensor | None = None,
    *,
    calibration: dict[str, Any] | None = None,
    memory: int | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Perplexity of the model without each unit: the lower, the more removable the unit.

    model: a Decoder, a loaded PreTrainedModel (left unchanged), or whatever `pyprune.load` takes. input_ids: `[S, T]`,
    S samples of T >= 2 tokens. unit: "block", "mha", "ffn" or "mha+ffn" (both kinds of halves ranked together).
    attention_mask: `[S, T]`, 0 where a token is padding. calibration: the fingerprint to keep with the result (made
    from `input_ids` when None). memory: bytes that may be taken beyond the model (what is free when None); the work is
    split to stay within them, which does not change the result. progress: called with (steps done, steps in all).
    Equal to one forward pass per removed unit within float32 rounding.

    Raises InputError for an unknown criterion or unit, ids outside the vocabulary, no predicted position, or a memory
    in which not even one candidate fits.
    Source: Shortened LLaMA, section 3.1, perplexity: exp(mean negative log-likelihood over all predicted positions).
    """
    if criterion != "ppl":
        raise InputError(f"criterion: {criterion!r} given; 'ppl' is accepted")
    decoder = as_decoder(model)
    ids, mask = check_samples(decoder, input_ids, attention_mask)
    return perplexity_scores(decoder, ids, mask, unit, calibration=calibration, memory=memory, progress=progress)
