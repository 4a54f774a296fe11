"""What a part is told by the command that starts it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
"""The checkout: parts run in it."""

Save = Callable[[dict[str, Any]], None]
"""Keeps what a part has so far: it stands even if the part is stopped afterwards."""


@dataclass(frozen=True)
class Settings:
    """One part's orders. `kind` is the module that does it, `options` what distinguishes it from others of that kind.

    `out`: the JSON file of its result. `model`: a checkpoint with real weights. `bandwidth` and `gemm_flops`: bytes/s
    and operations/s of a large product that were measured on this machine, the yardsticks.
    """

    kind: str
    out: str
    seed: int = 0
    dry_run: bool = False
    model: str | None = None
    bandwidth: float | None = None
    gemm_flops: float | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> str:
        return "cpu" if self.dry_run else "cuda"

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Settings:
        return cls(**json.loads(text))
