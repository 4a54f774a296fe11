"""Stretches of work in which Python collects no garbage."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Within it Python collects no garbage, but before: a collection takes time that is measured, and to free a CUDA
    object (an old graph) may end a recording."""
    gc.collect()
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
