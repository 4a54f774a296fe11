"""Where new keys and values go: memory that `norm_qkv_rope` writes to, and transformers' cache afterwards.

A slot has `keys` and `values` `[B, G, rows, D]` to be written at rows `start` .. `start + T - 1`; `keep()` then puts
them in the cache and gives all keys, all values and the row of the first new token among them (None if unknown).
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticCache,
    StaticLayer,
)

BUFFER = "pyprune_buffer"  # the attribute of a dynamic layer's keys and values that holds the memory they grow into
SPARE_ROWS, SPARE_SHARE = 64, 8  # memory for at least this many more rows, or for an eighth more
Kept = tuple[Tensor, Tensor, int | Tensor | None]


def slot(cache: Cache | None, layer: int, shape: tuple[int, int, int, int], like: Tensor) -> Fresh | Fixed | Growing:
    """The slot for the keys and values `shape` = `[B, G, T, D]` of attention layer `layer`; `like` has their dtype.

    Plain dynamic and static caches are written in place; any other cache (sliding, quantised, offloaded ...) is given
    fresh tensors through its `update`.
    """
    if cache is None:
        return Fresh(shape, like)
    if type(cache) in (DynamicCache, StaticCache) and not cache.offloading and layer < len(cache.layers):
        entry = cache.layers[layer]
        # Writing to a dynamic layer's spare memory is bookkeeping that does not belong in a compiled graph.
        if type(entry) is DynamicLayer and not torch.compiler.is_compiling() and _fits(entry, shape, like):
            return Growing(entry, shape, like)
        if type(entry) is StaticLayer:
            if not entry.is_initialized:
                nothing = like.new_empty(*shape[:2], 0, shape[3])
                entry.lazy_initialization(nothing, nothing)
            if _fits(entry, shape, like):
                return Fixed(entry, shape[2])
    return Updating(cache, layer, shape, like)


def _fits(entry: DynamicLayer | StaticLayer, shape: tuple[int, int, int, int], like: Tensor) -> bool:
    """Whether keys and values of this shape are of the cache's own kind; if not, its `update` knows what to do."""
    keys, values = entry.keys, entry.values
    if not entry.is_initialized or keys is None or values is None or keys.numel() == 0:
        return True
    for states in (keys, values):
        if states.dtype != like.dtype or states.device != like.device:
            return False
        if states.shape[:2] != shape[:2] or states.shape[3] != shape[3]:
            return False
    return True


class Fresh:
    """No cache: keys and values live as long as the layer's forward."""

    start = 0

    def __init__(self, shape: tuple[int, int, int, int], like: Tensor) -> None:
        self.keys, self.values = like.new_empty(shape), like.new_empty(shape)

    def keep(self) -> Kept:
        return self.keys, self.values, 0


class Updating(Fresh):
    """Any cache, through its own `update`."""

    def __init__(self, cache: Cache, layer: int, shape: tuple[int, int, int, int], like: Tensor) -> None:
        super().__init__(shape, like)
        self.cache, self.layer = cache, layer

    def keep(self) -> Kept:
        keys, values = self.cache.update(self.keys, self.values, self.layer)
        new_rows_are_last = type(self.cache.layers[self.layer]) in (DynamicLayer, DynamicSlidingWindowLayer)
        return keys, values, keys.shape[2] - self.keys.shape[2] if new_rows_are_last else None


class Fixed:
    """A static cache's layer: its own memory, from where it was filled to."""

    def __init__(self, entry: StaticLayer, tokens: int) -> None:
        self.entry, self.tokens = entry, tokens
        # Of an initialised entry both are there.
        self.keys: Tensor = entry.keys  # type: ignore[assignment]
        self.values: Tensor = entry.values  # type: ignore[assignment]
        # On the host its value costs nothing; in a graph it must stay a tensor, of which this is a copy.
        self.start = entry.cumulative_length.clone() if torch.compiler.is_compiling() else int(entry.cumulative_length)

    def keep(self) -> Kept:
        self.entry.cumulative_length.add_(self.tokens)
        return self.keys, self.values, self.start


class Growing:
    """A dynamic cache's layer: rows are appended to a buffer with spare rows, where `update` copies them all anew.

    The newest view of a buffer, and it alone, refers to it (attribute BUFFER): growing takes the reference from the old
    view and gives it to the new one. So rows that a view shows are never written again, whatever was done with the
    cache meanwhile: a cropped, reordered, repeated or copied one has tensors without a buffer, and is copied when it
    grows.
    """

    def __init__(self, entry: DynamicLayer, shape: tuple[int, int, int, int], like: Tensor) -> None:
        if not entry.is_initialized:
            nothing = like.new_empty(*shape[:2], 0, shape[3])
            entry.lazy_initialization(nothing, nothing)
        self.entry = entry
        self.start = entry.get_seq_length()
        self.end = self.start + shape[2]
        # Of an initialised entry both are there.
        held: list[Tensor] = [entry.keys, entry.values]  # type: ignore[list-item]
        buffers = [states.__dict__.pop(BUFFER, None) for states in held]
        if not (all(map(self._is_large_enough, buffers)) and buffers[0].shape == buffers[1].shape):
            buffers = [self._new_buffer(states, shape) for states in held]
        self.keys, self.values = buffers

    def _is_large_enough(self, buffer: Tensor | None) -> bool:
        if buffer is None or buffer.shape[2] < self.end:
            return False
        # What was made under inference_mode, torch's own operations do not write to outside.
        return torch.is_inference_mode_enabled() or not buffer.is_inference()

    def _new_buffer(self, states: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
        batch, heads, _, head_dim = shape
        buffer = states.new_empty(batch, heads, self.end + max(SPARE_ROWS, self.end // SPARE_SHARE), head_dim)
        if self.start:
            buffer[:, :, : self.start] = states
        return buffer

    def keep(self) -> Kept:
        self.entry.keys, self.entry.values = (self._view(buffer) for buffer in (self.keys, self.values))
        return self.entry.keys, self.entry.values, self.start

    def _view(self, buffer: Tensor) -> Tensor:
        view = buffer[:, :, : self.end]
        setattr(view, BUFFER, buffer)
        return view
