"""The README's recipe and the paper's on SmolLM2, one after the other.

    python -m bench.recipes --wikitext FILE [NAME ...]

Each has a process and a folder of its own under bench/results/recipes. One whose page or table is there is passed over;
where only results.json is there, because drawing it failed, the page is drawn. They share a store of finished work, so
that a model which several of them need is made once, and a run that was interrupted or took too long goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from pyprune.files import write_bytes
from pyprune.study.recipes.names import BUDGETS
from pyprune.study.recipes.report import drawn
from pyprune.study.results_directory import RESULTS as RAW

ORDER = (
    "table9", "figure4", "table2", "table10", "table8", "figure1", "table5", "table4", "table6", "figure5", "figure2",
    "figure6", "table7",
)  # fmt: skip
"""The quick ones first, then those whose models others need, the longest last."""

OWN = {"repair-and-retrain": "examples/repair_and_retrain.toml"}
"""Recipes that are not the paper's: name -> file, seen from the repository's folder."""

MODEL = "smollm2-135m"
RESULTS = Path(__file__).parent / "results" / "recipes"
MINUTES = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", metavar="NAME", nargs="*", help="default: all")
    parser.add_argument("--wikitext", required=True, metavar="FILE", help="WikiText-2's test split")
    parser.add_argument("--store", default="recipes.store", metavar="DIR", help="default: recipes.store")
    parser.add_argument("--budget", default=BUDGETS[0], choices=BUDGETS)
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"at most, for each; default: {MINUTES:g}")
    options = parser.parse_args()
    for name in options.names or (*OWN, *ORDER):
        print(f"{name}: {outcome(name, RESULTS / name, options)}", flush=True)


def outcome(name: str, out: Path, options: argparse.Namespace) -> str:
    """Run one recipe into `out`, or draw what it measured, where that is needed; what came of it, in words."""
    if any((out / page).exists() for page in ("index.html", "table.md")):
        return "is there already"
    if (out / RAW).exists():
        try:
            files = drawn(json.loads((out / RAW).read_text("utf-8")))
        except Exception as error:  # the other recipes go on
            return f"is measured already, but cannot be drawn ({type(error).__name__}: {error})"
        for file, content in files.items():
            write_bytes(out / file, content)
        return "is measured already, and is drawn now"
    words = ["recipe", OWN.get(name, name), MODEL, "--budget", options.budget]
    words += ["--text", f"wikitext2={options.wikitext}", "--store", options.store, "--out", str(out)]
    began = time.perf_counter()
    try:
        done = subprocess.run([sys.executable, "-m", "pyprune", *words], check=False, timeout=60 * options.minutes)
    except subprocess.TimeoutExpired:
        return f"stopped after {options.minutes:g} minutes; what is finished is in {options.store}"
    return f"{(time.perf_counter() - began) / 60:.1f} minutes, exit code {done.returncode}"


if __name__ == "__main__":
    main()
