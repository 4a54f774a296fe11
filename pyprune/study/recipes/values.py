"""The values that the measures of a recipe give: how they are called, written, and which way is better."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


def counted(count: int, noun: str) -> str:
    """ "1 run", "2 runs"."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


PAPER_LENGTH = 128
"""New tokens of the times that the paper prints."""


def shown_setting(measured: Mapping[str, Any]) -> tuple[int, int]:
    """Batch and new tokens of the times that the values of speed are taken from: the smallest batch, and as many new
    tokens as the paper's printed times have, else the most. measured: an entry of the results' `timings`."""
    lengths = measured["protocol"]["output_tokens"]
    return min(measured["batches"]), PAPER_LENGTH if PAPER_LENGTH in lengths else max(lengths)


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
