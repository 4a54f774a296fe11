"""RoPE's tables, made once in a forward pass and handed from the model to its layers."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from pyprune.runtime.huggingface.classes import Accelerated


class Rotary(Accelerated):
    """Accelerated rotary embedding: marks its result, so that layers know what it is and can share what they derive.

    Where gradients are recorded it is left unmarked: there the layers run as they were.
    """

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        pair = super().forward(x, position_ids)
        return pair if torch.is_grad_enabled() else Rotation(pair)


class Rotation(tuple):
    """transformers' `position_embeddings`: cos and sin `[B or 1, T, D]`, each value twice, at i and i + D/2.

    It also keeps what layers of the same forward pass have in common.
    """

    def shared(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """make(), called once for each key and forward pass."""
        kept = self.__dict__.setdefault("kept", {})
        if key not in kept:
            kept[key] = make()
        return kept[key]

    def tables(self) -> tuple[Tensor, Tensor]:
        """cos and sin as the operators want them, float32 `[B*T or T, D/2]`; their values stay those of the dtype
        transformers rounded them to."""

        def halves(table: Tensor) -> Tensor:
            half = table.shape[-1] // 2
            return table[..., :half].reshape(-1, half).to(torch.float32).contiguous()

        return self.shared("tables", lambda: (halves(self[0]), halves(self[1])))

    def positions(self, batch: int, tokens: int) -> Tensor:
        """The table's row of each token, int64 `[B, T]`."""
        return self.shared("positions", lambda: self._positions(batch, tokens))

    def _positions(self, batch: int, tokens: int) -> Tensor:
        rows = torch.arange(self[0].shape[0] * tokens, device=self[0].device).view(-1, tokens)
        return rows.expand(batch, tokens).contiguous()

    def rows(self, start: int | Tensor, batch: int, tokens: int) -> Tensor:
        """The cache row of each token, int64 `[B, T]`: `start` and up."""

        def make() -> Tensor:
            return (torch.arange(tokens, device=self[0].device) + start).expand(batch, tokens).contiguous()

        return make() if isinstance(start, Tensor) else self.shared(("rows", start), make)
