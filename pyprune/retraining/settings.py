"""The settings of a training, with the paper's defaults and those of its published code."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from pyprune.checks import is_int
from pyprune.errors import InputError

PRECISIONS = ("fp32", "bf16")
FIRST_CUT = "first-cut"
_COUNTS = {  # name -> the least that is accepted
    "lora_rank": 1, "batch": 1, "micro_batch": 1, "cutoff": 2, "warmup_steps": 0, "steps": 1, "eval_steps": 1,
    "held_out": 0, "seed": 0,
}  # fmt: skip
_NUMBERS = {"learning_rate", "epochs", "lora_alpha", "max_grad_norm"}


@dataclass(frozen=True)
class Settings:
    """steps: optimizer steps; epochs: passes over the text where no steps are given. batch: samples of a step, which go
    through the model `micro_batch` at a time. cutoff: tokens of a sample. lora_rank, lora_alpha, lora_dropout: of LoRA
    (Hu et al. 2021) on every projection. full: all parameters instead. train_from:
    the first block, by its place, that trains, or "first-cut", the first that lacks something or has something missing
    before it; the blocks before it and the embedding then stay as they are. learning_rate: AdamW's highest, after
    `warmup_steps` (at most a tenth of all); from there it falls in a line to zero. precision: "fp32", or "bf16": frozen
    weights and products in bfloat16, what is trained in float32; None: the model's dtype says. gradient_checkpointing:
    blocks are computed again on the way back, for less memory. held_out: samples of the text that are kept from
    training where no other text to evaluate on is named (None: a twentieth, at most 64). eval_steps: steps between
    evaluations (None: a twentieth of all). save_seconds: between two states on the disk. seed: of the order of samples,
    the adapters and the dropout.

    InputError for values that cannot be had.
    """

    steps: int | None = None
    epochs: float | None = None
    lora_rank: int = 8
    lora_alpha: float = 16
    lora_dropout: float = 0.05
    learning_rate: float = 1e-4
    batch: int = 64
    micro_batch: int = 4
    cutoff: int = 256
    warmup_steps: int = 100
    max_grad_norm: float = 1.0
    full: bool = False
    train_from: int | str = 0
    precision: str | None = None
    gradient_checkpointing: bool = False
    held_out: int | None = None
    eval_steps: int | None = None
    save_seconds: float = 60
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in _COUNTS.items():
            value = getattr(self, name)
            optional = name in ("steps", "eval_steps", "held_out")
            if not (value is None and optional) and not (is_int(value) and value >= least):
                raise InputError(f"retrain: {name} {value!r}: a whole number from {least} is expected")
        for name in _NUMBERS:
            value = getattr(self, name)
            if not (value is None and name == "epochs") and not _is_number(value, above=0):
                raise InputError(f"retrain: {name} {value!r}: a finite number above 0 is expected")
        if not (_is_number(self.lora_dropout) and 0 <= self.lora_dropout < 1):
            raise InputError(f"retrain: lora_dropout {self.lora_dropout!r}: a number from 0 to below 1 is expected")
        if not (_is_number(self.save_seconds) and self.save_seconds >= 0):
            raise InputError(f"retrain: save_seconds {self.save_seconds!r}: a finite number from 0 is expected")
        if self.batch % self.micro_batch:
            raise InputError(f"retrain: micro_batch {self.micro_batch}: a divisor of batch, {self.batch}, is expected")
        if self.steps is not None and self.epochs is not None:
            raise InputError(f"retrain: steps {self.steps} and epochs {self.epochs}: one of the two is expected")
        if self.train_from != FIRST_CUT and not (is_int(self.train_from) and self.train_from >= 0):
            raise InputError(
                f"retrain: train_from {self.train_from!r}: a block's position from 0, or {FIRST_CUT}, is expected"
            )
        if self.precision is not None and self.precision not in PRECISIONS:
            raise InputError(f"retrain: precision {self.precision!r}: {', '.join(PRECISIONS)} are accepted")

    def total_steps(self, samples: int) -> int:
        """Optimizer steps over so many samples; the last batch of the last pass is filled up from another pass."""
        if self.steps is not None:
            return self.steps
        return max(1, math.ceil((2.0 if self.epochs is None else self.epochs) * samples / self.batch))

    def rate(self, step: int, total: int) -> float:
        """The learning rate of a step from 0, as a share of the highest."""
        warmup = min(self.warmup_steps, total // 10)
        return (step + 1) / (warmup + 1) if step < warmup else (total - step) / max(1, total - warmup)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def _is_number(value: object, above: float | None = None) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return number and (above is None or value > above)  # type: ignore[operator]  # it is a number
