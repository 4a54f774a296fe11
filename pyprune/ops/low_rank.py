"""What the operators of low-rank products check of their arguments."""

from __future__ import annotations

from torch import Tensor

from pyprune.ops.checks import described, expect


def check_factor(a: Tensor, rows: Tensor) -> None:
    """RuntimeError unless a is a matrix of as many columns as the rows have."""
    expect(
        rows.dim() >= 1 and a.dim() == 2 and a.shape[1] == rows.shape[-1],
        f"a: a matrix of the columns of {described(rows)} is expected, not {described(a)}",
    )


def check_low(low: Tensor, rows: Tensor, rank: int | None = None) -> None:
    """RuntimeError unless low has a row for each of the rows, of `rank` values where that is given."""
    expect(
        rows.dim() >= 1 and low.dim() >= 1 and low.shape[:-1].numel() == rows.shape[:-1].numel(),
        f"low: a row for each of {described(rows)} is expected, not {described(low)}",
    )
    expect(rank in (None, low.shape[-1]), f"low: {rank} values a row are expected, not {described(low)}")
