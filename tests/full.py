"""`--full`: the tests marked `full` too, which need a browser, mkdocs or a notebook's kernel, take minutes, or are the
cases beside those that `make test` selects of a large set.

`make test-full` installs these tools; without the option the tests are skipped and say so.
"""

from __future__ import annotations

import pytest


class Full:
    """Skips what the tools are not promised for."""

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        if config.getoption("full"):
            return
        for item in items:
            if item.get_closest_marker("full"):
                item.add_marker(pytest.mark.skip(reason="`make ci-full` runs it (--full)"))
