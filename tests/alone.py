"""Tests marked `alone` wait until the workers of pytest-xdist are done, and then run one after the other.

They measure memory, end processes or watch a clock: beside other tests they would measure those. They run in the
process that led the workers, so that one summary and one exit status tell of all tests.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest


def is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def leads_workers(config: pytest.Config) -> bool:
    return not is_worker(config) and bool(config.getoption("tx", None)) and config.getoption("dist", "no") != "no"


class Alone:
    """The second half of a run on several workers."""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        if is_worker(config):
            items[:] = [item for item in items if not item.get_closest_marker("alone")]
        elif leads_workers(config):
            items[:] = [item for item in items if item.get_closest_marker("alone")]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Iterator[None]:
        done = yield  # the workers run all other tests
        options = session.config.option
        if not leads_workers(session.config) or options.collectonly or options.quick:  # which leaves them out
            return done
        others = session.testscollected
        items = session.perform_collect()
        session.testscollected = others + len(items)
        for place, item in enumerate(items):
            following = items[place + 1] if place + 1 < len(items) else None
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.shouldfail:
                raise session.Failed(session.shouldfail)
            if session.shouldstop:
                raise session.Interrupted(session.shouldstop)
        return done
