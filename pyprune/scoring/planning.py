"""How much memory a scoring pass will take, from a model's sizes alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pyprune.checks import is_int
from pyprune.errors import InputError
from pyprune.models.decoder import Decoder
from pyprune.scoring.footprint import PassSize, fit_pass, measuring_bytes
from pyprune.scoring.layered_decoder import LayeredDecoder
from pyprune.scoring.measures import MEASURES, measure_names
from pyprune.scoring.narrowed import narrowing_bytes


@dataclass(frozen=True)
class PlannedDecoder(LayeredDecoder):
    """A decoder of which only the sizes are known, as it would be on a kind of device."""

    kind: str = "cpu"

    @property
    def device(self) -> torch.device:
        return torch.device(self.kind)

    @property
    def state_dtype(self) -> torch.dtype:
        return torch.float32 if self.kind == "cpu" else self.decoder.dtype


def plan_scoring(
    sizes: Decoder,
    candidates: int,
    samples: int = 10,
    tokens: int = 128,
    *,
    measure: str | Sequence[str] | None = None,
    limit: int | None = None,
    device: str = "cpu",
) -> PassSize:
    """What a pass over so many different candidates takes beyond the model, on `samples` of `tokens` tokens: all of
    them at once, or with a limit, in bytes, the largest part that fits in it.

    A candidate that narrows a sublayer holds that one's weights while it runs; for that the model's largest sublayer is
    planned. InputError for a count below 1, and a limit in which nothing fits.
    """
    for name, value, least in (("candidates", candidates, 1), ("samples", samples, 1), ("tokens", tokens, 2)):
        if not is_int(value) or value < least:
            raise InputError(f"plan: {name} {value!r}; a whole number from {least} is expected")
    model = PlannedDecoder(sizes, device)
    kinds = [MEASURES[name] for name in measure_names(measure)]
    sublayers = [part for block in sizes.sizes().blocks for part in (block.mha, block.ffn) if part is not None]
    extra = measuring_bytes(model, kinds, max(map(narrowing_bytes, sublayers), default=0))
    states = candidates + 1  # and the model as it is
    return fit_pass(model, (samples, tokens), states, states, limit, extra=extra)
