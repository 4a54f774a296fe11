"""docs/status.md and the README's support matrix, from bench/status.toml and the results that it names."""

from __future__ import annotations

import json
import tomllib
from typing import Any

from bench.pages.prose import ROOT
from bench.pages.results import RESULTS, table

NEVER = "**compiled only, never run**"


def declared() -> dict[str, Any]:
    """bench/status.toml. ValueError for evidence that is absent, and for a row whose keys are not known."""
    data = tomllib.loads((ROOT / "bench" / "status.toml").read_text("utf-8"))
    for row in data["row"]:
        if unknown := row.keys() - {"hardware", "kernels", "default", "suite", "evidence", "tested", "note"}:
            raise ValueError(f"{row['hardware']}: unknown keys {', '.join(sorted(unknown))}")
        for name in row.get("evidence", []):
            if not (RESULTS / name).exists():
                raise ValueError(f"{row['hardware']}: {name}: no such file in bench/results")
    return data


def matrix(prefix: str) -> str:
    """A line for each row. prefix: of the links, up to the repository's root."""
    rows = [
        [row["hardware"], row["kernels"], row["default"], tested(row, prefix), row.get("note", "")]
        for row in declared()["row"]
    ]
    return table(["hardware", "kernels", "default", "what has run", "note"], rows)


def tested(row: dict[str, Any], prefix: str) -> str:
    """What has run there, with links."""
    texts = ["the test suite"] if row.get("suite") else []
    for name in row.get("evidence", []):
        texts.append(f"[{ran(name, row['kernels'])}]({prefix}bench/results/{name})")
    return ", ".join(texts) or NEVER


def ran(name: str, kernels: str) -> str:
    """What a result file shows, in a few words."""
    if name.startswith("gpu-check"):
        parts = json.loads((RESULTS / name).read_text("utf-8"))["parts"]
        wanted = "operators-cuda" if kernels.startswith("CUDA") else "operators-triton"
        done = [part["result"] for part in parts if part["name"].startswith(wanted) and part["result"]]
        cases = f"{sum(r['passed'] for r in done)} of {sum(r['of'] for r in done)} cases" if done else ""
        decoded = any(part["name"].startswith("decode") for part in parts)
        return " and ".join(filter(None, (cases, "decoding" if decoded else "")))
    return {"amx": "operators' tests", "instruction": "timing", "decode": "decoding"}[name.split("-")[0]]


def page() -> str:
    """The whole page."""
    newer = "\n".join(f"- {entry['what']}" for entry in declared()["newer"])
    return f"""<!-- Written by `make docs` from bench/status.toml and bench/results/. Do not edit. -->
# Status

`pyprune doctor` says which kernels your machine uses and why. Where kernels are not the default, plain PyTorch runs and
a warning says so. *Compiled only*: tests compile the kernels for that hardware, without register spills. They have
never run there, and no speed is claimed.

{matrix("../")}

## Newer than the last GPU run

This code has run only in Triton's interpreter or in an emulator, or has only been compiled:

{newer}

[Check your own GPU](guides/run-on-a-gpu.md). [The notes](../bench/NOTES.md) record each run on hardware.
"""


def short_matrix() -> str:
    """The README's support matrix: hardware whose lines are alike stands in one."""
    lines: dict[tuple[str, ...], list[str]] = {}
    for row in declared()["row"]:
        has_run = "test suite" if row.get("suite") else row["tested"] if row.get("evidence") else ""
        compiled = "" if has_run else "never run"
        lines.setdefault((row["kernels"], row["default"], has_run, compiled), []).append(row["hardware"])
    rows = [["; ".join(hardware), *marks] for marks, hardware in lines.items()]
    return table(["hardware", "kernels", "default", "tested", "compiled only"], rows)
