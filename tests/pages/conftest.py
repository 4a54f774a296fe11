"""The results that the comparison's tests use, and one browser for all tests of pages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.pages import browser as browsers
from tests.study.conftest import results  # noqa: F401  # a fixture


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    reason = browsers.missing()
    if reason:
        pytest.skip(reason)
    with browsers.launched() as program:
        yield program
