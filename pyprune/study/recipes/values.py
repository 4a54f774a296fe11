"""The values that the measures of a recipe give: how they are called, written, and which way is better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyprune.errors import InputError
from pyprune.evaluation.paper_tasks import PAPER_TASKS
from pyprune.study.columns import millions, perplexity, significant, times
from pyprune.study.evaluations.accuracy import HEADERS


@dataclass(frozen=True)
class Value:
    """`measure`: the field of `Measures` that gives it, None where sizes do; `better`: "lower", "higher" or None;
    `scale`: what our number is multiplied with to have the paper's unit."""

    header: str
    write: Callable[[Any], str]
    measure: str | None = None
    better: str | None = None
    scale: float = 1.0


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _fixed(value: Any) -> str:
    return "" if value is None else str(value)


VALUES: dict[str, Value] = {
    "parameters": Value("M params", millions),
    "removed_share": Value("removed %", _percent, scale=100),
    "blocks": Value("blocks", _fixed),
    "ffn_width": Value("FFN width", _fixed),
    "heads": Value("heads", _fixed),
    "bytes_per_token": Value("MB/token", millions),
    "ppl": Value("PPL", perplexity, "perplexity", "lower"),
    "accuracy": Value("mean acc. %", _percent, "tasks", "higher", 100),
    **{name: Value(f"{HEADERS[name]} %", _percent, "tasks", "higher", 100) for name in PAPER_TASKS},
    "latency_s": Value("latency s", significant, "speed", "lower"),
    "tokens_per_s": Value("tokens/s", significant, "speed", "higher"),
    "speedup": Value("speed-up", times, "speed", "higher"),
    "hf_latency_s": Value("HF latency s", significant, "speed", "lower"),
    "hf_tokens_per_s": Value("HF tokens/s", significant, "speed", "higher"),
    "hf_speedup": Value("HF speed-up", times, "speed", "higher"),
    "repeated_4grams": Value("repeated 4-grams %", _percent, "samples", "lower", 100),
}
"""By name. Families of values, a name and a colon, are made by `known_value`."""


def known_value(name: str) -> Value:
    """The value of that name; `ppl` is the perplexity on the first held-out text, `ppl:TEXT` on the one of that name,
    `memory:LxM` the planned GiB for L new tokens and
    batch M. InputError for another name."""
    kind, _, rest = name.partition(":")
    if kind == "ppl" and rest:
        return Value(f"PPL {rest}", perplexity, "perplexity", "lower")
    if kind == "memory" and all(part.isascii() and part.isdigit() for part in rest.split("x")) and rest.count("x") == 1:
        length, batch = rest.split("x")
        return Value(f"GiB, L {length}, M {batch}", significant, "memory", "lower", 1 / 2**30)
    if name not in VALUES:
        raise InputError(f"one of {', '.join(VALUES)}, ppl:TEXT or memory:LxM (memory:128x16) is expected")
    return VALUES[name]
