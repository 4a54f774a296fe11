from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyprune.ops import native
from tests.library import needs_library


def isas() -> list:
    """Without the library this is one parameter that fails, for kernel tests must not vanish in silence; where the
    library is left out on purpose, they are skipped with that reason."""
    return native.runnable_isas() or [pytest.param("the CPU library is not loaded", marks=needs_library)]


@pytest.fixture(params=isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set that this machine can run, one after the other."""
    before = native.selected_isa()
    native.select_isa(request.param)
    yield request.param
    native.select_isa(before)
