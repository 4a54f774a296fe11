from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyprune.ops import native


# Without the library this is one parameter that fails: kernel tests must not vanish in silence.
@pytest.fixture(params=native.runnable_isas() or ["the CPU library is not loaded"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set that this machine can run, one after the other."""
    before = native.selected_isa()
    native.select_isa(request.param)
    yield request.param
    native.select_isa(before)
