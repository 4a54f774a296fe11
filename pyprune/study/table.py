"""The comparison's derived numbers: one line a row, engine, batch and output length, from the results alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyprune.study.measure import speedup, spread

REFERENCE_ROW = "original"
ENGINES = ("hf", "pyprune")

COLUMNS = (
    "row", "method", "ratio", "parameters", "removed_share", "blocks", "ffn_width", "heads", "kv_heads",
    "bytes_per_token", "kv_bytes_per_position", "ppl", "ppl_ratio", "engine", "batch", "output_tokens", "runs",
    "latency_s", "latency_q1_s", "latency_q3_s", "latency_min_s", "latency_max_s", "latency_mean_s", "tokens_per_s",
    "speedup", "speedup_q1", "speedup_q3", "speedup_low", "speedup_high", "speedup_by_bytes", "pyprune_vs_hf",
)  # fmt: skip
"""Latency in seconds for the whole batch, throughput in tokens/s; `speedup` is over the original under the same engine,
paired round by round, `speedup_low` to `speedup_high` a 95 % interval of its median (None below 6 runs);
`pyprune_vs_hf` is Hugging Face's latency over ours for the same row; `ppl_ratio` is over the original's perplexity."""


def table(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of `COLUMNS`, in the order of the rows and the timings. `results` as `compare` gives them."""
    rows = {row["name"]: row for row in results["rows"]}
    samples = {_key(timing): timing["seconds"] for timing in results["timings"]}
    original = rows[REFERENCE_ROW]
    lines = []
    for (name, engine, batch, length), seconds in samples.items():
        row, taken = rows[name], spread(seconds)
        gain = speedup(samples[REFERENCE_ROW, engine, batch, length], seconds)
        line = {
            **{column: row.get(column) for column in COLUMNS[1:12]},
            "ppl_ratio": None if None in (row["ppl"], original["ppl"]) else row["ppl"] / original["ppl"],
            "row": name,
            "engine": engine,
            "batch": batch,
            "output_tokens": length,
            "runs": taken["runs"],
            "latency_s": taken["median"],
            "latency_q1_s": taken["q1"],
            "latency_q3_s": taken["q3"],
            "latency_min_s": taken["min"],
            "latency_max_s": taken["max"],
            "latency_mean_s": taken["mean"],
            "tokens_per_s": batch * length / taken["median"],
            "speedup": gain["median"],
            "speedup_q1": gain["q1"],
            "speedup_q3": gain["q3"],
            "speedup_low": gain["low"],
            "speedup_high": gain["high"],
            "speedup_by_bytes": original["bytes_per_token"] / row["bytes_per_token"],
            "pyprune_vs_hf": None,
        }
        hf = samples.get((name, "hf", batch, length))
        if engine == "pyprune" and hf is not None:
            line["pyprune_vs_hf"] = speedup(hf, seconds)["median"]
        lines.append({column: line[column] for column in COLUMNS})
    return lines


def settings(results: dict[str, Any]) -> Iterator[tuple[int, int]]:
    """Each (batch, output_tokens) that was timed, once, in order."""
    yield from dict.fromkeys((timing["batch"], timing["output_tokens"]) for timing in results["timings"])


def engines(results: dict[str, Any]) -> list[str]:
    """The engines that were timed, once each, in order."""
    return list(dict.fromkeys(timing["engine"] for timing in results["timings"]))


def ratios(results: dict[str, Any]) -> list[str]:
    """The pruning ratios of the rows, once each, in order; the original has none."""
    return [ratio for ratio in dict.fromkeys(row["ratio"] for row in results["rows"]) if ratio is not None]


def _key(timing: dict[str, Any]) -> tuple[str, str, int, int]:
    return timing["row"], timing["engine"], timing["batch"], timing["output_tokens"]
