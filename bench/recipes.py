"""The README's recipe and the paper's on SmolLM2, one after the other.

    python -m bench.recipes --wikitext FILE [NAME ...]

Each has a process and a folder of its own under bench/results/recipes; one that is there already is passed over. They
share a store of finished work, so that a model which several of them need is made once, and an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from pyprune.study.recipes.names import BUDGETS

ORDER = (
    "table9", "figure4", "table2", "table10", "table8", "figure1", "table5", "table4", "table6", "figure5", "figure2",
    "figure6", "table7",
)  # fmt: skip
"""The quick ones first, then those whose models others need, the longest last."""

OWN = {"repair-and-retrain": "examples/repair_and_retrain.toml"}
"""Recipes that are not the paper's: name -> file, seen from the repository's folder."""

MODEL = "smollm2-135m"
RESULTS = Path(__file__).parent / "results" / "recipes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", metavar="NAME", nargs="*", help="default: all")
    parser.add_argument("--wikitext", required=True, metavar="FILE", help="WikiText-2's test split")
    parser.add_argument("--store", default="recipes.store", metavar="DIR", help="default: recipes.store")
    parser.add_argument("--budget", default=BUDGETS[0], choices=BUDGETS)
    options = parser.parse_args()
    for name in options.names or (*OWN, *ORDER):
        out = RESULTS / name
        if out.exists():
            print(f"{name}: is there already")
            continue
        words = ["recipe", OWN.get(name, name), MODEL, "--budget", options.budget]
        words += ["--text", f"wikitext2={options.wikitext}"]
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "pyprune", *words, "--store", options.store, "--out", str(out)], check=False
        )
        print(f"{name}: {(time.perf_counter() - began) / 60:.1f} minutes, exit code {done.returncode}", flush=True)


if __name__ == "__main__":
    main()
