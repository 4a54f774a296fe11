"""`--quick`: of every file the first three test functions that are not slow, the first case of each.

Slow are those marked `slow`, `alone` and `full`; those of the real model too, but for the first of a file that has no
others.
"""

from __future__ import annotations

from collections import Counter

import pytest

FUNCTIONS_OF_A_FILE = 3
LEFT_OUT = ("slow", "alone", "full")
NEVER_QUICK = {
    "tests/gpu_check/test_dry_run.py",  # one run of all parts; test_running.py runs parts of its own
    "tests/cuda/test_later_architectures.py",  # a compilation each
}
# Files of which `--quick` would run nothing, of those that were collected; tests/test_quick.py wants none.
WITHOUT_QUICK = pytest.StashKey[list[str]]()


class Quick:
    """The selection for the inner loop: every subject, the fewest cases."""

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        firsts: dict[tuple[str, str], pytest.Item] = {}
        for item in items:
            firsts.setdefault((file_of(item), getattr(item, "originalname", item.name)), item)
        able = [item for item in firsts.values() if not any(map(item.get_closest_marker, LEFT_OUT))]
        selected: list[pytest.Item] = []
        count: Counter[str] = Counter()
        for item in sorted(able, key=needs_real_model):
            file = file_of(item)
            if count[file] < (1 if needs_real_model(item) else FUNCTIONS_OF_A_FILE):
                count[file] += 1
                selected.append(item)
        config.stash[WITHOUT_QUICK] = sorted({file_of(item) for item in items} - set(count) - NEVER_QUICK)
        if not config.getoption("quick"):
            return
        chosen = set(selected)
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = selected


def file_of(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def needs_real_model(item: pytest.Item) -> bool:
    return item.get_closest_marker("real_model") is not None
