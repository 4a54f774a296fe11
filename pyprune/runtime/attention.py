"""Attention of a stretch of new tokens over the cache: one token in decoding, a piece of the prompt in prefill."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pyprune import ops
from pyprune.ops import native

FEW_TOKENS = 16  # up to this many query tokens attend through `decode_attention`; beyond it torch's SDPA may be faster
# Where `decode_attention` was the faster one for any number of tokens: 1.2 to 1.9 times with AVX-512, 0.95 to 1.5 with
# AVX2 (32 to 768 tokens, 2 cores of a Zen 4; bench/test_prefill.py). On AMX nothing was measured.
ANY_TOKENS = native.selected_isa() in ("avx512_bf16", "avx512", "avx2")
# SDPA's products on a CPU round by where in a cache line a head begins: with head_dim 8 or 10 one prompt had other bits
# at other places of a batch (torch 2.13, 2 threads). Zeros up to a multiple of 16 change nothing else.
ALIGNED = 16


def runs_operator(tokens: int, device: torch.device) -> bool:
    """Whether `tokens` query tokens of each sequence attend through `decode_attention`, else through torch's SDPA."""
    return tokens <= FEW_TOKENS or (ANY_TOKENS and device.type == "cpu")


class Attention:
    """Causal attention of query tokens at `positions [B, T]` over cache rows of the same numbers.

    More than FEW_TOKENS query tokens stand at `start` .. `start`+T-1 in every sequence (a piece of a prompt). What SDPA
    needs beyond its result: the rows seen, in the query's dtype, and where plain causal attention does not say it
    a mask `[T, rows]`; one mask serves all blocks with the same window.
    """

    def __init__(self, positions: Tensor, start: int = 0) -> None:
        self._positions, self._start = positions, start
        self._masks: dict[int, Tensor] = {}

    def __call__(
        self, q: Tensor, keys: Tensor, values: Tensor, window: int, skip: Tensor | None = None, sublayer: int = 0
    ) -> Tensor:
        """q `[B, T, heads, head_dim]`, caches `[B', kv_heads, L, head_dim]` -> `[B, T, heads, head_dim]`. window: rows
        that a query sees, its own included; 0 for all up to its own."""
        batch, tokens, heads, head_dim = q.shape
        if runs_operator(tokens, q.device):
            return ops.decode_attention(q, keys, values, self._positions, head_dim**-0.5, skip, sublayer, None, window)
        stop = self._start + tokens
        if window >= stop:
            window = 0
        first = max(0, self._start - window + 1) if window else 0
        mask = None if self._start == 0 and not window else self._mask(tokens, first, window)
        k, v = (cache[:batch, :, first:stop].to(q.dtype) for cache in (keys, values))
        q = q.transpose(1, 2)
        if head_dim % ALIGNED:
            q, k, v = (F.pad(x, (0, -head_dim % ALIGNED)) for x in (q, k, v))
        context = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=head_dim**-0.5, enable_gqa=heads != k.shape[1]
        )
        return context[..., :head_dim].transpose(1, 2).contiguous()

    def _mask(self, tokens: int, first: int, window: int) -> Tensor:
        """Which of the rows `first` .. are seen, bool `[T, rows]`."""
        if window not in self._masks:
            own = torch.arange(self._start, self._start + tokens, device=self._positions.device).unsqueeze(1)
            row = torch.arange(first, self._start + tokens, device=own.device)
            seen = row <= own
            self._masks[window] = seen & (row > own - window) if window else seen
        return self._masks[window]
