"""How the memory beyond the model is divided between a pass and the states that are kept from one pass to the next."""

from __future__ import annotations

from pyprune.errors import InputError
from pyprune.models.decoder import Decoder
from pyprune.runtime import memory as device_memory
from pyprune.runtime.sequence import activation_dtype
from pyprune.scoring.footprint import PassSize, fit_pass

UNLIMITED = 1 << 62


class MemoryBudget:
    """Bytes that may be taken beyond `decoder` for samples of `tokens` tokens; what is free when `limit` is None."""

    def __init__(self, decoder: Decoder, tokens: int, padded: bool, limit: int | None) -> None:
        self._decoder, self._tokens, self._padded = decoder, tokens, padded
        self._by_user = limit is not None
        self._limit = device_memory.available(decoder.device) if limit is None else limit
        self.state_bytes = tokens * decoder.hidden_size * activation_dtype(decoder).itemsize
        """Bytes of one state of one sample."""

    def fit_pass(self, samples: int, candidates: int, slots: int, keeps_states: bool) -> PassSize:
        """The largest pass that fits; where states are kept, in half the limit if that does not cut candidates.

        slots: how many different states the candidates end in.
        """
        shape = samples, self._tokens
        if keeps_states and self._limit is not None:
            try:
                half = fit_pass(self._decoder, shape, candidates, slots, self._limit // 2, self._padded)
            except InputError:
                pass
            else:
                if half.candidates == candidates:
                    return half
        return fit_pass(self._decoder, shape, candidates, slots, self._limit, self._padded)

    def left_for_states(self, size: PassSize) -> int:
        """Bytes for states beside a pass. Where the user gave no limit, half of what is free stays free."""
        if self._limit is None:
            return UNLIMITED
        left = max(0, self._limit - size.bytes)
        return left if self._by_user else left // 2
