"""Activations of all calibration tokens: in memory, or in a temporary mapped file where they would take too much."""

from __future__ import annotations

import os
import tempfile
from math import prod

import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.runtime import memory


class States:
    """Makes tensors `[samples, seq_len, width]` within `limit` bytes (half of what is free when None); what goes beyond
    lies in files that have no name any more, so that they go with the process however it ends."""

    def __init__(self, dtype: torch.dtype, device: torch.device, limit: int | None = None) -> None:
        self._dtype, self._device = dtype, device
        free = memory.available(device)
        self._left = limit if limit is not None else (1 << 62 if free is None else free // 2)

    def empty(self, *shape: int) -> Tensor:
        """An uninitialised tensor. On a GPU there are no files: there it is always in memory."""
        size = prod(shape) * self._dtype.itemsize
        if size <= self._left or self._device.type != "cpu":
            self._left -= size
            return torch.empty(shape, dtype=self._dtype, device=self._device)
        with tempfile.NamedTemporaryFile(prefix="pyprune-states-") as file:  # mapped, it outlives its name
            try:  # now, for a page that the disk has no room for ends the process when it is written
                os.posix_fallocate(file.fileno(), 0, max(size, 1))
            except OSError as error:
                raise InputError(
                    f"{tempfile.gettempdir()}: no room for {size} bytes of activations ({error.strerror}); more"
                    " memory, or a folder with room in the variable TMPDIR, is expected"
                ) from None
            return torch.from_file(file.name, shared=True, size=prod(shape), dtype=self._dtype).view(shape)
