"""What knowing of the repair brings to the choice of blocks, on SmolLM2: `python -m bench.selection_study`.

    python -m bench.selection_study --list
    python -m bench.selection_study --wikitext wikitext2-test.txt [--parts one-shot,greedy] [--seeds 0,1,2]

Each cell chooses blocks in one way, repairs what is left by one method, and takes the perplexity of both on held-out
texts: WikiText-2's test split and the BoolQ passages that nothing is drawn from. A finished cell is in the JSON file at
once; a second run goes on where the first one ended, within a search with repairs too. The last lines, and `"answers"`
in the file, say what the cells so far say of each question: does ppl-after-repair choose other blocks than ppl; is the
repaired model better for it; is greedy with a repair after each removal better than one ranking, or greedy by ppl,
repaired once.

All ways see the same windows: those that score, and those that every repair is fitted on, which are others. A seed
draws both from `demo:passages`. `--list` prints the parts with an estimate of a cell's time
on 2 free cores; the file says what each took.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import pyprune
from bench.repair_study import SEQ_LEN, Study
from pyprune.files import write_json
from pyprune.recovery import repair_with_report
from pyprune.scoring.calibration import set_apart

FORMAT = "pyprune selection study 4"
COUNT, SCORED, FITTED, SEEDS = 8, 10, 64, (0, 1, 2)
"""Blocks that go (20 % of SmolLM2's parameters), windows that score, windows that repairs are fitted on."""

REPAIRS = ("linear", "refit-all-o")
PARTS = {
    "one-shot": "one ranking by ppl, or by ppl-after-repair in each form; repaired once: 2 to 4 min a cell",
    "greedy": "greedy by ppl, repaired once: 3 to 6 min a cell",
    "each": "greedy, repaired after each removal, rounds by ppl or by ppl-after-repair: 8 to 30 min a cell",
}
WAYS = {
    "one-shot": ("ppl", "ppl-after-repair mean-update", "ppl-after-repair linear"),
    "greedy": ("ppl",),
    "each": ("ppl", "ppl-after-repair linear"),
}


def cells(part: str, seeds: Sequence[int], count: int, scored: int, fitted: int) -> list[dict[str, Any]]:
    """The settings of a part's cells. Of "each" no round by ppl-after-repair before the dearer repair."""
    sizes = {"count": count, "scored": scored, "fitted": fitted}
    return [
        {"search": part, "by": by, "repair": repair, "seed": seed, **sizes}
        for seed in seeds
        for repair in REPAIRS
        for by in WAYS[part]
        if not (part == "each" and by != "ppl" and repair != "linear")
    ]


class Selection(Study):
    """The texts and models of the repair study, and the choices so far."""

    def __init__(self, wikitext: str, journals: Path) -> None:
        super().__init__(wikitext)
        self.journals = journals
        self._chosen: dict[tuple[Any, ...], tuple[pyprune.Pruning, dict[str, Any], float]] = {}
        self._original = self.log_perplexities(self.decoder)

    def samples(self, cell: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """The windows that score, and those that repairs are fitted on: of one draw, both from all of the text."""
        drawn = self.draw("passages", cell["scored"] + cell["fitted"], cell["seed"])
        scored, fitted = set_apart(drawn, cell["scored"], cell["seed"])
        return scored.input_ids, fitted.input_ids

    def journal(self, cell: dict[str, Any]) -> Path:
        """Where the rounds of a cell's search are kept until it is finished."""
        return self.journals / "-".join(str(value).replace(" ", "-") for value in cell.values())

    def chosen(self, cell: dict[str, Any]) -> tuple[pyprune.Pruning, dict[str, Any], float]:
        """What goes, why, and the seconds that the choice took; the same for each repair that comes afterwards."""
        key = tuple(cell[name] for name in ("search", "by", "seed", "count", "scored", "fitted"))
        if key not in self._chosen:
            scored, fitted = self.samples(cell)
            criterion, _, form = cell["by"].partition(" ")
            options = {"form": form, "fit_ids": fitted} if form else {}
            began = time.perf_counter()
            if cell["search"] == "one-shot":
                scores = pyprune.score(self.decoder, scored, criterion, **options)
                pruning, why = pyprune.depth(scores, self.decoder, count=cell["count"]), scores.to_dict()
            else:
                search = pyprune.search(self.decoder, scored, "greedy", count=cell["count"])
                pruning, why = search.pruning(), search.to_dict()
            self._chosen[key] = pruning, why, time.perf_counter() - began
        return self._chosen[key]

    def run(self, cell: dict[str, Any]) -> dict[str, Any]:
        """One cell's result."""
        scored, fitted = self.samples(cell)
        if cell["search"] == "each":
            criterion, _, form = cell["by"].partition(" ")
            began = time.perf_counter()
            found = pyprune.search_with_repair(
                self.decoder, scored, fitted, cell["repair"], count=cell["count"], criterion=criterion,
                form=form or None, resume=self.journal(cell),
            )  # fmt: skip
            pruning, why, report = found.pruning(), found.search.to_dict(), found.repaired
            seconds = {"choice and repairs": time.perf_counter() - began}
        else:
            pruning, why, of_choice = self.chosen(cell)
            began = time.perf_counter()
            report = repair_with_report(self.decoder, pruning, fitted, cell["repair"])
            seconds = {"choice": of_choice, "repair": time.perf_counter() - began}
        lost = self.log_perplexities(pyprune.apply(self.decoder, pruning))
        reached = self.log_perplexities(report.decoder)
        return {
            "blocks": list(pruning.blocks),
            "choice": why,
            "perplexity": {
                name: {
                    "original": math.exp(original),
                    "pruned": math.exp(lost[name]),
                    "repaired": math.exp(reached[name]),
                    "recovered": (lost[name] - reached[name]) / (lost[name] - original),
                }
                for name, original in self._original.items()
            },
            "calibration": report.to_dict(),
            "seconds": seconds,
        }


ONE_RANKING = ("one-shot", "ppl")
QUESTIONS = {
    # what it asks: the way that it asks about, and the one that it is compared with
    "one-shot by ppl-after-repair, mean update, against by ppl": (("one-shot", WAYS["one-shot"][1]), ONE_RANKING),
    "one-shot by ppl-after-repair, linear, against by ppl": (("one-shot", WAYS["one-shot"][2]), ONE_RANKING),
    "greedy, repaired after each, against one-shot, repaired once": (("each", "ppl"), ONE_RANKING),
    "greedy, repaired after each, against greedy, repaired once": (("each", "ppl"), ("greedy", "ppl")),
    "greedy, repaired after each, by ppl-after-repair against by ppl": (("each", WAYS["each"][1]), ("each", "ppl")),
}


def answers(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each question, repair and text: how many of the blocks are other ones, and the mean over seeds, with its
    range, of log perplexity of the repaired model by the one way less that by the other; below 0 it is better."""
    by_cell = {tuple(entry["cell"].values()): entry for entry in entries}
    result = []
    for question, (way, other) in QUESTIONS.items():
        for repair in REPAIRS:
            pairs = []
            for entry in entries:
                cell = entry["cell"]
                if (cell["search"], cell["by"]) == way and cell["repair"] == repair:
                    counterpart = {**cell, "search": other[0], "by": other[1]}
                    if tuple(counterpart.values()) in by_cell:
                        pairs.append((entry, by_cell[tuple(counterpart.values())]))
            for text in pairs[0][0]["perplexity"] if pairs else ():
                changes = [
                    math.log(a["perplexity"][text]["repaired"] / b["perplexity"][text]["repaired"]) for a, b in pairs
                ]
                result.append(
                    {
                        "question": question,
                        "repair": repair,
                        "text": text,
                        "seeds": len(pairs),
                        "other_blocks": [len(set(a["blocks"]) - set(b["blocks"])) for a, b in pairs],
                        "log_perplexity": {
                            "mean": statistics.fmean(changes), "lowest": min(changes), "highest": max(changes)
                        },
                    }
                )  # fmt: skip
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="which parts, with commas (default: all)")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)), help="draws of the windows (default: 0,1,2)")
    parser.add_argument("--count", type=int, default=COUNT, help=f"blocks that go (default: {COUNT})")
    parser.add_argument("--scored", type=int, default=SCORED, help=f"windows that score (default: {SCORED})")
    parser.add_argument("--fitted", type=int, default=FITTED, help=f"windows that fit (default: {FITTED})")
    parser.add_argument("--out", default="bench/results/selection-smollm2.json", help="the JSON file")
    parser.add_argument("--wikitext", help="WikiText-2's test split, a text file (required to run)")
    parser.add_argument("--list", action="store_true", help="print the parts and their time, and leave")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    parts = {name: cells(name, seeds, options.count, options.scored, options.fitted) for name in PARTS}
    chosen = options.parts.split(",")
    for name in set(chosen) - parts.keys():
        parser.error(f"--parts {name}: {', '.join(PARTS)} are accepted")
    if options.list:
        for name, about in PARTS.items():
            print(f"{name}: {len(parts[name])} cells; {about}")
        return
    if options.wikitext is None:
        parser.error("--wikitext: the test split's text file is expected")
    out = Path(options.out)
    done: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"format": FORMAT, "cells": []}
    if done["format"] != FORMAT:
        parser.error(f"--out {out}: is of format {done['format']!r}, not {FORMAT!r}")
    study = None
    for cell in [cell for part in chosen for cell in parts[part]]:
        if any(entry["cell"] == cell for entry in done["cells"]):
            continue
        study = study or Selection(options.wikitext, out.with_name(f"{out.name}.journals"))
        entry = {"cell": cell, **study.run(cell)}
        done["cells"].append(entry)
        done["answers"] = answers(done["cells"])
        done["versions"] = {"torch": torch.__version__, "threads": torch.get_num_threads(), "seq_len": SEQ_LEN}
        write_json(out, done)
        if cell["search"] == "each":
            shutil.rmtree(study.journal(cell), ignore_errors=True)
        reached = {name: f"{value['repaired']:.2f}" for name, value in entry["perplexity"].items()}
        print(
            cell["search"],
            cell["by"],
            cell["repair"],
            cell["seed"],
            entry["blocks"],
            reached,
            entry["seconds"],
            flush=True,
        )
    for answer in done.get("answers", []):
        spread = answer["log_perplexity"]
        print(
            f"{answer['question']}; {answer['repair']}, {answer['text']}, {answer['seeds']} seeds: other blocks"
            f" {answer['other_blocks']}, log perplexity {spread['mean']:+.3f} ({spread['lowest']:+.3f} to"
            f" {spread['highest']:+.3f})"
        )


if __name__ == "__main__":
    main()
