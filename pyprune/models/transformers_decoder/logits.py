"""From the head's output to the model's logits: a factor (Cohere, Granite) and a soft cap (Gemma 2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyprune.errors import InputError

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class LogitMap:
    """logits = cap * tanh(scale * z / cap) of the head's output z; without the cap where that is None."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, z: Tensor) -> Tensor:
        z = z if self.scale == 1 else z * self.scale
        return z if self.cap is None else torch.tanh(z / self.cap) * self.cap

    @classmethod
    def between(cls, z: Tensor, logits: Tensor, model: Any) -> LogitMap:
        """The map that a forward pass shows: z `[N, T, vocabulary]` from the head, logits from the model.

        Factors and caps are numbers of the configuration, as factors or divisors; the one that fits is taken.
        InputError when none does.
        """
        if z is logits or torch.equal(z, logits):
            return cls()
        tolerance = _TOLERANCE[logits.dtype] * max(float(logits.double().abs().max()), 1e-30)
        for candidate in _candidates(model):
            if float((candidate(z.double()) - logits.double()).abs().max()) <= tolerance:
                return candidate
        raise InputError(
            f"{type(model).__name__}: its logits are neither its head's output nor a scale or a soft cap of it by a"
            " number of its configuration"
        )


def _candidates(model: Any) -> Iterator[LogitMap]:
    config = model.config.get_text_config(decoder=True)
    numbers = {
        name: float(value)
        for name, value in config.to_dict().items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
    }
    caps = [value for name, value in numbers.items() if "cap" in name]
    scales = list(dict.fromkeys(factor for n, value in numbers.items() if "logit" in n or "mult" in n or "scal" in n
                                for factor in (value, 1 / value)))  # fmt: skip
    scales += [config.hidden_size**-0.5]
    yield from (LogitMap(cap=cap) for cap in caps)
    yield from (LogitMap(scale=scale) for scale in scales)
    yield from (LogitMap(scale, cap) for cap in caps for scale in scales)
