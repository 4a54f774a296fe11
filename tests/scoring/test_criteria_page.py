"""The table of docs/reference/criteria.md has every criterion."""

from __future__ import annotations

import re
from pathlib import Path

from pyprune.scoring.criteria import CRITERIA

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "criteria.md").read_text("utf-8")


def test_the_table_has_every_criterion():
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([a-z-]+)`", row)]
    assert list(dict.fromkeys(named))[: len(CRITERIA)] == list(CRITERIA)
