"""`make test-quick` has a test of every file."""

from __future__ import annotations

import pytest

from tests.quick import WITHOUT_QUICK


def test_every_file_has_a_quick_test(pytestconfig: pytest.Config):
    assert not pytestconfig.stash[WITHOUT_QUICK], "each of these files has only tests marked slow or alone"
