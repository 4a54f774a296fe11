"""Blocks that are read from their file when they are run, so that a model may be larger than memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import overload

from pyprune.models.blocks import Block


class StreamedBlocks(Sequence[Block]):
    """The blocks of a decoder, each read anew whenever it is asked for; `sizes` has their shapes on the meta device.

    Walking over them reads the next block in a thread while the caller works with the present one: two blocks' weights
    are in memory at a time, as long as the caller lets each go.
    """

    def __init__(self, read: Callable[[int], Block], sizes: Sequence[Block]) -> None:
        self._read = read
        self.sizes = tuple(sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, place: int) -> Block: ...
    @overload
    def __getitem__(self, place: slice) -> StreamedBlocks: ...
    def __getitem__(self, place: int | slice) -> Block | StreamedBlocks:
        if isinstance(place, slice):
            places = range(len(self))[place]
            return StreamedBlocks(lambda index: self._read(places[index]), self.sizes[place])
        return self._read(range(len(self))[place])

    def __iter__(self) -> Iterator[Block]:
        with ThreadPoolExecutor(1, thread_name_prefix="pyprune-read") as reader:
            coming = [reader.submit(self._read, 0)] if len(self) else []
            for place in range(1, len(self) + 1):
                block = coming.pop().result()  # what is kept in a future would stay in memory
                if place < len(self):
                    coming.append(reader.submit(self._read, place))
                yield block
                del block

    def map(self, change: Callable[[Block], Block]) -> StreamedBlocks:
        """The same blocks, each changed after it was read."""
        return StreamedBlocks(lambda index: change(self._read(index)), [change(block) for block in self.sizes])
