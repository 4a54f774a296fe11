"""The costs that docs/reference/scoring.md gives are what is counted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from pyprune import load, search

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "scoring.md").read_text("utf-8")
THIRTY_BLOCKS = "shape:hidden=16,blocks=30,heads=2,kv_heads=2,head_dim=8,ffn=20,vocab=40"


@pytest.mark.parametrize(
    ("given", "row"),
    [
        (dict(method="one-shot", count=1), "rank all blocks"),
        (dict(method="one-shot", count=1, unit="mha+ffn"), "rank all 2L sublayers"),
        (dict(method="window", count=6), "all windows of w blocks"),
    ],
)
def test_the_costs_are_what_is_counted(given: dict, row: str):
    line = next(line for line in PAGE.splitlines() if line.startswith(f"| {row}"))
    naive, here = map(float, re.findall(r"(\d+), (\d+) \|$", line)[0])
    found = search(load(THIRTY_BLOCKS), torch.arange(18).view(2, 9), **given)
    assert (found.naive.blocks, found.cost.blocks) == (naive, here)


def test_a_further_round_costs_what_the_formula_says():
    found = search(load(THIRTY_BLOCKS), torch.arange(18).view(2, 9), "greedy", count=3)
    cost, naive, left = 465, 900, list(range(30))
    for step in found.steps[:-1]:
        place = left.index(step.removed[0][1])
        left.pop(place)
        n, p = len(left), place
        cost += (n - p) * (n - p - 1) / 2 + p * (n - p)
        naive += n * (n - 1)
    assert (found.cost.blocks, found.naive.blocks) == (cost, naive)
