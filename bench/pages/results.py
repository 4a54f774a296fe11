"""Committed results, and their numbers as cells of a Markdown table."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from bench.pages.prose import ROOT

RESULTS = ROOT / "bench" / "results"

COMPARISON = "compare-smollm2-quick-2core-zen4.json"
"""What the README's plot shows."""
REPAIRED = "recipes/repair-and-retrain/results.json"
"""What the README's table of depth and width shows: `python -m bench.recipes --wikitext FILE repair-and-retrain`."""
COMPARISON_BY_TASKS = "compare-smollm2-tasks-2core-zen4.json"
"""The paper's seven tasks on the rows of a comparison."""
DECODING = "decode-peers-smollm2-bf16-2core-zen4.json"
"""What the README's table of decoding shows."""


@cache
def read(name: str) -> Any:
    """A result file as JSON data."""
    return json.loads((RESULTS / name).read_text("utf-8"))


def cases(name: str, test: str = "") -> list[dict[str, Any]]:
    """The extra information of a benchmark file's cases whose name begins with `test`, their own name among it."""
    return [
        {**case["extra_info"], "name": case["name"], "params": case["params"] or {}}
        for case in read(name)["benchmarks"]
        if case["name"].startswith(test)
    ]


def ratio(measured: Mapping[str, Any] | None) -> str:
    """A median ratio as text: bold where its 95 % interval excludes 1; `~` where it does not; `*` without interval."""
    if measured is None:
        return ""
    text = f"{measured['median']:.2f}x"
    if measured["low"] is None:
        return f"{text} \\*"
    return f"**{text}**" if not measured["low"] <= 1 <= measured["high"] else f"~ {text}"


def link(*names: str) -> str:
    """Links from docs/ to raw samples."""
    if len(names) == 1:
        return f"[samples](../bench/results/{names[0]})"
    return "samples: " + ", ".join(f"[{place}](../bench/results/{n})" for place, n in enumerate(names, start=1))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, columns of numbers to the right; columns that are empty in every row are left out."""
    cells = [list(row) for row in rows]
    kept = [place for place in range(len(header)) if any(row[place] for row in cells)]
    rules = ["---:" if place and _numbers([row[place] for row in cells]) else "---" for place in kept]
    lines = [[header[place] for place in kept], rules, *([row[place] for place in kept] for row in cells)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _numbers(column: Sequence[str]) -> bool:
    """Whether all cells of a column that say something are numbers, or ratios."""
    return all(re.match(r"[*~ +-]*\d", cell) for cell in column if cell)


def machine(name: str) -> str:
    """The machine of a benchmark file or a comparison, in words."""
    data = read(name)
    return in_words(data.get("machine_info") or data["machine"])


def in_words(info: Mapping[str, Any]) -> str:
    """A machine as `pyprune.study.machine` describes it."""
    flags = [flag for flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if flag in info["cpu_flags"]]
    return f"{info['usable_cores']} cores of an {info['cpu']} ({flags[0]})"
