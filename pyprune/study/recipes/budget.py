"""How much a recipe may cost: texts, windows, retraining steps, documents and runs, by the budget's name."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from pyprune.errors import InputError
from pyprune.study.protocols import Protocol
from pyprune.study.recipes.fields import Fields, number, one_of, several, table_of, text, whole
from pyprune.study.recipes.names import SHIPPED

GIVEN = "given"
"""Stands for a text that the user names."""


@dataclass(frozen=True)
class Budget:
    """The settings that a budget fixes.

    Texts: `calibration`, `training` and `held_out` (name -> text), as `pyprune.scoring.calibration` reads them, with a
    part in brackets, "demo:lambada[0%:40%]"; "given": the user names it. `instructions`: instead of `training`, a file
    of instructions. `repair`: what repairs are fitted on (None: the calibration text), `repair_samples` windows of it.
    Calibration: `samples` windows of `seq_len` tokens, drawn by `seed`. Retraining: `steps` (None:
    `epochs`), of the trainings of an iterative pruning `round_steps` each, and the settings of `pyprune.retrain`.
    Perplexity on at most `tokens` of each held-out text, in windows of `window`. Tasks: `limit` documents each. Speed:
    as a `Protocol`, with `batches`. Samples: `draws` of at most `new_tokens`. `dtype`: of evaluation and timing.
    """

    name: str
    calibration: str
    held_out: dict[str, str]
    training: str | None
    instructions: str | None
    repair: str | None
    repair_samples: int
    samples: int
    seq_len: int
    seed: int
    steps: int | None
    round_steps: int
    epochs: int
    batch: int
    micro_batch: int
    cutoff: int
    learning_rate: float
    warmup_steps: int
    lora_rank: int
    precision: str | None
    tokens: int | None
    window: int
    limit: int | None
    batches: tuple[int, ...]
    output_tokens: tuple[int, ...]
    warmups: int
    runs: int
    draws: int
    new_tokens: int
    dtype: str

    def protocol(self, input_tokens: int, output_tokens: tuple[int, ...] | None) -> Protocol:
        """How speed is taken."""
        return Protocol(
            self.name, input_tokens, output_tokens or self.output_tokens, self.warmups, self.runs,
            self.tokens or 0, self.window,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@cache
def _defaults() -> dict[str, Any]:
    return tomllib.loads((SHIPPED / "budgets.toml").read_text(encoding="utf-8"))


def read_budget(name: str, changes: Mapping[str, Any], where: str) -> Budget:
    """The budget of that name with a recipe's changes; InputError for a key or value that is not accepted."""
    fields = Fields({**_defaults()[name], **changes}, where)
    budget = Budget(
        name=name,
        calibration=fields.take("calibration", text),
        held_out=fields.take("held_out", table_of(text)),
        training=fields.take("training", text, None),
        instructions=fields.take("instructions", text, None),
        repair=fields.take("repair", text, None),
        repair_samples=fields.take("repair_samples", whole(1)),
        samples=fields.take("samples", whole(1)),
        seq_len=fields.take("seq_len", whole(2)),
        seed=fields.take("seed", whole(0)),
        steps=fields.take("steps", whole(0), None),
        round_steps=fields.take("round_steps", whole(1)),
        epochs=fields.take("epochs", whole(1)),
        batch=fields.take("batch", whole(1)),
        micro_batch=fields.take("micro_batch", whole(1)),
        cutoff=fields.take("cutoff", whole(2)),
        learning_rate=fields.take("learning_rate", number(0)),
        warmup_steps=fields.take("warmup_steps", whole(0)),
        lora_rank=fields.take("lora_rank", whole(1)),
        precision=fields.take("precision", one_of("fp32", "bf16"), None),
        tokens=fields.take("tokens", whole(2), None),
        window=fields.take("window", whole(2)),
        limit=fields.take("limit", whole(1), None),
        batches=fields.take("batches", several(whole(1))),
        output_tokens=fields.take("output_tokens", several(whole(1))),
        warmups=fields.take("warmups", whole(0)),
        runs=fields.take("runs", whole(1)),
        draws=fields.take("draws", whole(1)),
        new_tokens=fields.take("new_tokens", whole(1)),
        dtype=fields.take("dtype", one_of("float32", "bfloat16", "float16")),
    )
    fields.finish()
    if (budget.training is None) == (budget.instructions is None):
        raise InputError(f"{where}: training and instructions: exactly one of them is expected")
    if not budget.held_out:
        raise InputError(f"{where}: held_out: one text or more is expected")
    if budget.batch % budget.micro_batch:
        raise InputError(f"{where}: batch {budget.batch}: a multiple of micro_batch, {budget.micro_batch}, is expected")
    return budget
