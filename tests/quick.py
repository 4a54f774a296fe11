"""`--quick`: the first case of every test function that is not slow; of every file at least one.

Slow are those marked `slow` and `alone`; those of the real model too, but for the first of a file that has no others.
"""

from __future__ import annotations

import pytest

LEFT_OUT = ("slow", "alone")
NEVER_QUICK = {
    "tests/gpu_check/test_dry_run.py",  # one run of all parts; test_running.py runs parts of its own
    "tests/cuda/test_later_architectures.py",  # a compilation each
    "tests/runtime/test_generation_page.py",  # the examples of a page, on the real model
}


class Quick:
    """The selection for the inner loop: every subject, the fewest cases."""

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        if not config.getoption("quick"):
            return
        firsts: dict[tuple[str, str], pytest.Item] = {}
        for item in items:
            firsts.setdefault((file_of(item), getattr(item, "originalname", item.name)), item)
        able = [item for item in firsts.values() if not any(map(item.get_closest_marker, LEFT_OUT))]
        selected = [item for item in able if not item.get_closest_marker("real_model")]
        files = {file_of(item) for item in selected}
        for item in able:
            if file_of(item) not in files:
                files.add(file_of(item))
                selected.append(item)
        missing = sorted({file_of(item) for item in items} - files - NEVER_QUICK)
        if missing:
            raise pytest.UsageError(f"--quick: every test is marked slow or alone in {', '.join(missing)}")
        chosen = set(selected)
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = selected


def file_of(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]
