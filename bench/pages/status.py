"""docs/status.md and the README's support matrix, from bench/status.toml and the results that it names."""

from __future__ import annotations

import json
import tomllib
from typing import Any

from bench.pages.prose import ROOT
from bench.pages.results import RESULTS, table

STATES = {"default": "default", "tested": "tested", "compiled": "compiled only"}


def declared() -> dict[str, Any]:
    """bench/status.toml. ValueError for a state without the evidence that it needs, and for evidence that is absent."""
    data = tomllib.loads((ROOT / "bench" / "status.toml").read_text("utf-8"))
    for row in data["row"]:
        evidence = row.get("evidence", [])
        if row["state"] not in STATES:
            raise ValueError(f"{row['hardware']}: state {row['state']!r}; one of {', '.join(STATES)} is expected")
        if row["state"] != "compiled" and not evidence and not row.get("suite"):
            raise ValueError(f"{row['hardware']}: {row['state']} needs evidence, or a suite that runs there")
        for name in evidence:
            if not (RESULTS / name).exists():
                raise ValueError(f"{row['hardware']}: {name}: no such file in bench/results")
    return data


def matrix(prefix: str) -> str:
    """Hardware, kernels, state and note. prefix: of the links, up to the repository's root."""
    rows = [
        [row["hardware"], row["kernels"], STATES[row["state"]], "; ".join(filter(None, (tested(row, prefix), row.get("note", ""))))]
        for row in declared()["row"]
    ]
    return table(["hardware", "kernels", "state", "what has run"], rows)


def tested(row: dict[str, Any], prefix: str) -> str:
    """What has run there, with links."""
    texts = ["the test suite"] if row.get("suite") else []
    for name in row.get("evidence", []):
        texts.append(f"[{ran(name, row['kernels'])}]({prefix}bench/results/{name})")
    if row["state"] == "compiled":
        texts.append("**never run**")
    return ", ".join(texts)


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

- **default**: used without asking.
- **tested**: has run and passed there; used when you ask for it.
- **compiled only**: compiles for that hardware without spills and within its limits, in tests. It has never run there, and no speed is claimed.

{matrix("../")}

`pyprune doctor` says which kernels your machine uses and why.

## Newer than the last run on a GPU

This code has run in Triton's interpreter, in an emulator or in the compiler only:

{newer}

[Run on a GPU](guides/run-on-a-gpu.md) says how to check your own card. [The notes](../bench/NOTES.md) say what each run on hardware found.
"""


def short_matrix() -> str:
    """The README's support matrix: one line for each hardware, its kernels together."""
    lines: dict[str, list[tuple[str, str]]] = {}
    for row in declared()["row"]:
        lines.setdefault(row["hardware"], []).append((row["kernels"], row["state"]))
    rows = []
    for hardware, kernels in lines.items():
        marks = [", ".join(name for name, state in kernels if state == wanted) for wanted in STATES]
        rows.append([hardware, *marks])
    return table(["hardware", "default", "tested", "compiled only, never run"], rows)
