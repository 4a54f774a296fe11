"""What the self-check checks: jobs of items that share kernels, the most important first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from pyprune.ops.self_check.cases import Case, cases
from pyprune.ops.self_check.judgement import DTYPES, check
from pyprune.runtime.self_check.recorded import check_step

SEED = 20
OPERATORS = (
    "norm_qkv_rope", "decode_attention", "norm_gate_up", "linear_residual", "norm_head", "linear_cross_entropy",
    "padded_linear",
)  # fmt: skip
BATCHES = {"bfloat16": (1, 2, 4, 16), "float16": (1, 4)}
"""Of the recorded steps: two rows go to the CUDA library, more to Triton's kernels."""

LONG = (
    "64x129 -> 171", "64x512 -> 256", "65x129 -> 171", "65x512 -> 256", "1x7155 -> 4096", "1x4096 -> 7155",
    "4x4096 -> 7155",
)  # fmt: skip
"""Beginnings of the labels that are taken of the many cases of full size: 64 and 65 rows, and the paper's widths. Each
fits half a gigabyte in float64."""

CASE_S, STEP_S = 30.0, 75.0
"""Seconds after which a case is given up, and a recorded step, before which a dozen kernels are compiled."""


@dataclass(frozen=True)
class Item:
    """One thing to check: a case of an operator, or the recorded step of a batch."""

    dtype: str
    case: Case | None = None
    batch: int = 0

    @property
    def label(self) -> str:
        if self.case is None:
            return f"{self.dtype} recorded step, batch {self.batch}"
        return f"{self.dtype} {self.case.operator} {self.case.label}"

    @property
    def limit_s(self) -> float:
        return STEP_S if self.case is None else CASE_S

    def check(self, device: str) -> dict[str, Any]:
        """Errors and verdict, as `judgement.check` reports them."""
        dtype = getattr(torch, self.dtype)
        if self.case is None:
            return check_step(self.batch, dtype, device, SEED)
        return check(self.case, dtype, device, SEED)


def jobs(small: bool = False) -> list[list[Item]]:
    """The recorded steps, then a job for each operator and dtype. small: a few items of each kind, for a dry run."""
    jobs = [[Item(dtype, batch=batch) for batch in batches[: 1 if small else None]]
            for dtype, batches in BATCHES.items()]  # fmt: skip
    chosen = list(_cases(small))
    for dtype in DTYPES:
        for operator in OPERATORS:
            jobs.append([Item(dtype, case) for case in chosen if case.operator == operator])
    return jobs


def _cases(small: bool) -> Iterator[Case]:
    seen = set()
    for size in ("tiny",) if small else ("tiny", "small", "full"):
        for few_rows in (True, False):
            for case in cases(SEED, size, few_rows):
                name = case.operator, case.label
                chosen = size != "full" or case.label.startswith(LONG)
                if chosen and name not in seen:
                    seen.add(name)
                    yield case
