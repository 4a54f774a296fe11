"""How the memory beyond the model is divided between a pass and the states that are kept from one pass to the next."""

from __future__ import annotations

from pyprune.errors import InputError
from pyprune.runtime import memory as device_memory
from pyprune.scoring.footprint import NOTHING, Extra, PassSize, fit_pass
from pyprune.scoring.layered_model import LayeredModel

UNLIMITED = 1 << 62


class MemoryBudget:
    """Bytes that may be taken beyond `model` for samples of `tokens` tokens; what is free when `limit` is
    None. extra: what measures and replacements take."""

    def __init__(
        self, model: LayeredModel, tokens: int, padded: bool, limit: int | None, extra: Extra = NOTHING
    ) -> None:
        self._model, self._tokens, self._padded, self._extra = model, tokens, padded, extra
        self._by_user = limit is not None
        self._limit = device_memory.available(model.device) if limit is None else limit
        self.state_bytes = tokens * model.hidden_size * model.state_dtype.itemsize
        """Bytes of one state of one sample."""

    def fit_pass(self, samples: int, candidates: int, slots: int, keeps_states: bool) -> PassSize:
        """The largest pass that fits; where states are kept, in half the limit if that does not cut candidates.

        slots: how many different states the candidates end in.
        """
        shape = samples, self._tokens
        if keeps_states and self._limit is not None:
            try:
                half = self._fit(shape, candidates, slots, self._limit // 2)
            except InputError:
                pass
            else:
                if half.candidates == candidates:
                    return half
        return self._fit(shape, candidates, slots, self._limit)

    def _fit(self, shape: tuple[int, int], candidates: int, slots: int, limit: int | None) -> PassSize:
        return fit_pass(self._model, shape, candidates, slots, limit, self._padded, self._extra)

    def left_for_states(self, size: PassSize) -> int:
        """Bytes for states beside a pass. Where the user gave no limit, half of what is free stays free."""
        if self._limit is None:
            return UNLIMITED
        left = max(0, self._limit - size.bytes)
        return left if self._by_user else left // 2
