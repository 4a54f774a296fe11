"""The numbers that the paper prints, as data: Kim et al., Shortened LLaMA, Tables 1, 2, 4 and 9.

The curves of its figures are not printed as numbers: of those only the points that a table repeats are known.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ORIGINAL = "original"
METHODS = ("depth", "wanda-sp", "flap", "llm-pruner")
"""The pruned rows of each ratio; depth is the paper's own method, both of whose criteria have the same speed."""

PROMPT, NEW_TOKENS = 12, 128
"""Of Tables 2 and 4, at batch 1."""

NAMES = {
    "original": "Original", "depth": "Depth", "wanda-sp": "Wanda-sp", "flap": "FLAP", "llm-pruner": "LLM-Pruner",
}  # fmt: skip
MODELS = {"llama-7b": "LLaMA-7B", "vicuna-13b": "Vicuna-13B"}


@dataclass(frozen=True)
class Shape:
    """A row of Table 1: blocks, and heads and FFN width of each (FLAP's are means, with a deviation over blocks)."""

    model: str
    ratio: str | None
    method: str
    parameters_b: float
    blocks: int
    heads: float
    heads_deviation: float
    width: float
    width_deviation: float


@dataclass(frozen=True)
class Speed:
    """A row of Table 2 or 4 on one GPU: 12 input tokens, 128 new ones, batch 1; None where it ran out of memory."""

    model: str
    ratio: str | None
    method: str
    gpu: str
    latency_s: float | None
    tokens_per_s: float | None
    table: str


@dataclass(frozen=True)
class Memory:
    """A cell of Table 9 (H100, depth pruning, 12 input tokens); None where it ran out of memory."""

    model: str
    ratio: str | None
    output_tokens: int
    batch: int
    gb: float | None


@cache
def shapes() -> tuple[Shape, ...]:
    """Table 1."""
    return tuple(
        Shape(
            line["model"], line["ratio"] or None, line["method"], float(line["parameters_b"]), int(line["blocks"]),
            float(line["heads"]), float(line["heads_deviation"]), float(line["width"]), float(line["width_deviation"]),
        )
        for line in _lines("table1.csv")
    )  # fmt: skip


@cache
def speeds() -> tuple[Speed, ...]:
    """The speed columns of Tables 2 (LLaMA-7B) and 4 (Vicuna-13B)."""
    return tuple(
        Speed(
            line["model"], line["ratio"] or None, line["method"], line["gpu"], _number(line["latency_s"]),
            _number(line["tokens_per_s"]), line["table"],
        )
        for line in _lines("speeds.csv")
    )  # fmt: skip


@cache
def memories() -> tuple[Memory, ...]:
    """Table 9."""
    return tuple(
        Memory(
            line["model"], line["ratio"] or None, int(line["output_tokens"]), int(line["batch"]), _number(line["gb"])
        )
        for line in _lines("table9.csv")
    )


def speed(model: str, ratio: str | None, method: str, gpu: str = "H100") -> Speed | None:
    """The paper's speed of a row; None for one that it does not have."""
    key = (model, ratio, method, gpu)
    return next(
        (
            speed_row
            for speed_row in speeds()
            if (speed_row.model, speed_row.ratio, speed_row.method, speed_row.gpu) == key
        ),
        None,
    )


def speedup(model: str, ratio: str | None, method: str, gpu: str = "H100") -> float | None:
    """The row's throughput over the original's, from the printed numbers; None where one of them is missing."""
    row, original = speed(model, ratio, method, gpu), speed(model, None, ORIGINAL, gpu)
    if row is None or original is None or row.tokens_per_s is None or original.tokens_per_s is None:
        return None
    return row.tokens_per_s / original.tokens_per_s


def ratios(model: str) -> list[str]:
    """The model's pruning ratios, smallest first."""
    return list(dict.fromkeys(shape.ratio for shape in shapes() if shape.model == model and shape.ratio is not None))


def _lines(name: str) -> list[dict[str, str]]:
    with (Path(__file__).parent / name).open(encoding="utf-8", newline="") as source:
        return list(csv.DictReader(source))


def _number(text: str) -> float | None:
    return None if text == "OOM" else float(text)
