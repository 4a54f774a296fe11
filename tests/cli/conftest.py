"""What tests of several commands begin with."""

from __future__ import annotations

import pytest


@pytest.fixture
def failing(monkeypatch):
    """Make scoring fail in a given way."""

    def fail_with(error: BaseException) -> None:
        def fail(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr("pyprune.scoring.score", fail)

    return fail_with
