"""The oldest torch that pyprune runs with: the first whose stable ABI the native libraries are built for."""

from __future__ import annotations

import torch

from pyprune.errors import InputError

OLDEST = (2, 10)


def require() -> None:
    """InputError where the installed torch is older."""
    numbers = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if numbers < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise InputError(f"torch {torch.__version__}: {oldest} or newer is expected (pip install 'torch>={oldest}')")
