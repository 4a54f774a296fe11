"""docs/paper-on-smollm2.md: what of the paper a small model bears out, from the recipes' committed results."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import astuple
from typing import Any

from bench.pages.results import RESULTS, machine, read, table
from pyprune.study.recipes.agreement import Outcome, claim_outcome
from pyprune.study.recipes.names import shipped_recipes

RECIPES = "recipes"
PICTURES = {"figure1": "speed.png", "figure5": "figure.png"}


def page() -> str:
    """The whole page; a recipe that has not been run yet is left out."""
    results = {name: read(f"{RECIPES}/{name}/results.json") for name in shipped_recipes() if is_there(name)}
    pieces = {piece: taken for of_recipe in results.values() for piece, taken in of_recipe["seconds"].items()}
    here = machine(f"{RECIPES}/{next(iter(results))}/results.json")
    hours = sum(pieces.values()) / 3600
    pictures = "\n\n".join(
        f"![{results[name]['recipe']['title']}](../bench/results/{RECIPES}/{name}/{file})"
        for name, file in PICTURES.items()
        if name in results
    )
    return f"""<!-- Written by `make docs` from bench/results/. Do not edit. -->
# The paper on SmolLM2

Each recipe ran with the quick budget on {here}, in {hours:.1f} hours in all; work that
several of them need was done once. On a model so small, order and direction compare
with the paper, numbers do not; each table's page says more.

```bash
python -m bench.recipes --wikitext wikitext2-test.txt
pyprune recipe table5 smollm2-135m --text wikitext2=wikitext2-test.txt --out table5
```

{overview(results)}

## What the paper says

Counted are pairs of rows of the same size, or of a row and the original. *Undecided* pairs lie within two standard
errors, or their intervals of speed overlap. Tables that share models share numbers.

{claims(results)}

{pictures}
"""


def is_there(name: str) -> bool:
    """Whether a recipe's results are committed."""
    return (RESULTS / RECIPES / name / "results.json").exists()


def overview(results: dict[str, Any]) -> str:
    """A row a recipe: the paper's table or figure, what it shows, and the minutes that its parts took."""
    rows = [
        [
            f"[{source(data)}](../bench/results/{RECIPES}/{name}/table.md)",
            data["recipe"]["title"],
            f"{sum(data['seconds'].values()) / 60:.0f}",
        ]
        for name, data in results.items()
    ]
    return table(["in the paper", "what it shows", "minutes, shared work counted in each"], rows)


def source(data: dict[str, Any]) -> str:
    """Which table or figure of the paper a recipe is after."""
    return str(data["recipe"]["source"]).removeprefix("Shortened LLaMA, ").removesuffix(", lower half")


def claims(results: dict[str, Any]) -> str:
    """A row a sentence of the paper: whether it holds here, and the comparisons in each of its tables that say so."""
    outcomes: defaultdict[str, dict[str, Outcome]] = defaultdict(dict)
    for data in results.values():
        for claim in data["recipe"]["claims"]:
            outcomes[claim["text"]][source(data)] = claim_outcome(data, claim)
    rows = []
    for text, by_source in outcomes.items():
        whole = Outcome(*(sum(counts) for counts in zip(*map(astuple, by_source.values()), strict=True)))
        counts = (f"{name}: {o.agree}/{o.contradict}/{o.undecided}" for name, o in by_source.items())
        verdict = whole.verdict.removeprefix("it ").replace(" here", "")
        rows.append([text.removesuffix("."), verdict, ", ".join(counts)])
    return table(["the paper", "here", "pairs for/against/undecided"], rows)
