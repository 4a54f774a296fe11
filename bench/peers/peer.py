"""What a program must offer to be timed beside the others: an untimed prefill, then greedy decode steps."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from pyprune.models.decoder import Decoder


class Absent(Exception):
    """A peer that cannot take part here; the message is the reason that the table prints."""


class Decoding(ABC):
    """A model and the buffers for one batch size, ready to run."""

    bytes_per_token: int | None = None
    """Of weights that a step reads, where they are not the decoder's own."""

    @abstractmethod
    def prefill(self, prompts: Tensor) -> None:
        """Forget what was there, read the prompts `[batch, tokens]` and choose the token after each."""

    @abstractmethod
    def decode(self, steps: int) -> Tensor:
        """Feed the last tokens and choose the next greedily, `steps` times: the chosen ones, int64 `[batch, steps]`."""

    def close(self) -> None:  # noqa: B027 (most have nothing to give back)
        """Give back what Python does not."""


class Peer(ABC):
    """One of those that are timed."""

    name: str

    def absent_reason(self) -> str | None:
        """Why it cannot run on this machine; None when it can."""
        return None

    @abstractmethod
    def open(self, decoder: Decoder, batch: int, length: int) -> Decoding:
        """Make everything for `batch` sequences of up to `length` tokens, in the decoder's dtype. May raise Absent."""

    def describe(self) -> dict[str, str]:
        """Versions and settings that its numbers must be read with."""
        return {}
