"""Tests marked `alone` wait until the workers of pytest-xdist are done, and then run one after the other.

They measure the memory of the process that they run in, or watch a clock so closely that others would be in their way.
They run in the process that led the workers, so that one summary and one exit status tell of all tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

NAMES = "pyprune_alone"
"""Where a worker tells which of the chosen tests it left out."""


def is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def leads_workers(config: pytest.Config) -> bool:
    return not is_worker(config) and bool(config.getoption("tx", None)) and config.getoption("dist", "no") != "no"


class Alone:
    """The second half of a run on several workers."""

    def __init__(self) -> None:
        self.waiting: set[str] = set()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: Any, items: list[pytest.Item]) -> None:
        if is_worker(config):
            alone = [item for item in items if item.get_closest_marker("alone")]
            config.workeroutput[NAMES] = [item.nodeid for item in alone]
            items[:] = [item for item in items if item not in set(alone)]
        elif leads_workers(config):
            items[:] = [item for item in items if item.nodeid in self.waiting]

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self.waiting |= set(getattr(node, "workeroutput", {}).get(NAMES, ()))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Iterator[None]:
        done = yield  # the workers run all other tests
        options = session.config.option
        if not self.waiting or options.collectonly or options.quick:  # which leaves them out
            return done
        others = session.testscollected
        files = {session.config.rootpath / name.partition("::")[0] for name in self.waiting}
        items = session.perform_collect(sorted(map(str, files)))
        session.testscollected = others + len(items)
        for place, item in enumerate(items):
            following = items[place + 1] if place + 1 < len(items) else None
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.shouldfail:
                raise session.Failed(session.shouldfail)
            if session.shouldstop:
                raise session.Interrupted(session.shouldstop)
        return done
