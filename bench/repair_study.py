"""What repairs bring on SmolLM2: `python -m bench.repair_study [--parts NAME,...] [--out FILE]`.

Each part is a list of cells; a finished cell is in the JSON file at once, and a second run goes on where the first one
ended. A cell has the perplexity of the original, the pruned and the repaired model on held-out texts, the share of the
lost log-perplexity that came back, and its seconds: by the clock, and of the processor a thread, which is what it takes
where nothing else runs. `--list` prints the parts and an estimate of a cell's time on 2 free cores, from bfloat16
products to AVX2; the file says what each took.

Calibration is `demo:passages` unless the part says otherwise, without the documents that quote the held-out texts.
Those are WikiText-2's test split (`--wikitext FILE`) and BoolQ passages that no calibration draws from.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch

import pyprune
from pyprune.files import write_json
from pyprune.recovery import repair_with_report
from pyprune.recovery.fitting import enough_samples
from pyprune.recovery.local_steps import default_precision
from pyprune.recovery.methods import TAKEN_BY
from pyprune.regression.held_out import spread
from pyprune.retraining.clean_texts import without_quotes
from pyprune.scoring.calibration import calibration, evaluation
from pyprune.scoring.calibration.demonstrations import boolq, lambada, passages
from pyprune.scoring.calibration.sources import Texts
from pyprune.scoring.calibration.windows import Encoder, Windows, draw_windows
from pyprune.study.machine import describe, lasting

FORMAT = "pyprune repair study 6"
SEQ_LEN, WINDOWS, WINDOWS_OF_STEPS, HELD_OUT_WINDOWS, DOCUMENTS = 128, 128, 1024, 64, 100
"""Windows: closed forms are fitted on WINDOWS, what makes gradient steps on WINDOWS_OF_STEPS."""
MINUTES, FEWER_MINUTES = 15, 10
"""What `auto` may take at 20 %, and at other ratios."""
CLOSED = ("mean-update", "scale", "linear", "linear-cosine", "refit", "refit-all", "refit-all-o")
WIDTH = ("flap-bias", "stat", "refit-all-o")
CHAIN = "refit-all-o+tail"
BEST = ("refit-all-o", "auto")
BY_STEPS = ("auto", "blockwise", "tail")
"""What makes gradient steps."""
PARTS = {
    "auto": "auto at 20 % depth, one-shot and greedy by PPL: 16 to 18 min a cell",
    "methods": "every closed form at 20 % depth, one-shot and greedy by PPL: 2 to 4 min a cell",
    "steps": "gradient steps alone, one-shot: 15 to 30 min a cell",
    "width": "FLAP and Wanda-sp at 20 % with the width repairs, and with auto: 2 to 16 min a cell",
    "seeds": "three draws of the windows that choose the blocks and of the calibration: 2 to 16 min a cell",
    "ratios": "10, 27 and 35 %, PPL depth and FLAP, best closed form and auto: 2 to 11 min a cell",
    "tokens": "10, 128, 512 and 2,000 windows with refit-all-o: 1 to 45 min a cell",
    "texts": "calibration of mixed passages, LAMBADA alone, BoolQ alone: 2 to 4 min a cell",
    "first": "tokens relative, equal, and without first tokens: 2 to 4 min a cell",
    "tasks": "the seven tasks of the original, the pruned model and auto's: 6 to 25 min a cell",
    "tuning": "rates, steps, blocks and windows of the gradient steps behind refit-all-o: 6 to 40 min a cell",
}
WITHOUT_ASKING = tuple(part for part in PARTS if part != "tuning")
"""The parts that are run where none is named: five hours with bfloat16 products, seven with AVX2."""


def cells(part: str) -> list[dict[str, Any]]:
    """The settings of a part's cells."""
    base = {"prune": "one-shot", "ratio": 0.2, "seed": 0, "text": "passages", "options": {}}

    def cell(method: str, **changed: Any) -> dict[str, Any]:
        windows = WINDOWS_OF_STEPS if set(BY_STEPS) & set(method.split("+")) else WINDOWS
        ratio = changed.get("ratio", base["ratio"])
        limit = {"minutes": MINUTES if ratio == base["ratio"] else FEWER_MINUTES} if method == "auto" else {}
        return {"method": method, "windows": windows, **base, "options": limit, **changed}

    return {
        "methods": [cell(method=m, prune=p) for p in ("one-shot", "greedy") for m in CLOSED],
        "auto": [cell(method="auto", prune=p) for p in ("one-shot", "greedy")],
        "steps": [cell(method=m) for m in ("tail", "blockwise")],
        "width": [cell(method=m, prune=p) for p in ("flap", "wanda-sp") for m in (*WIDTH, "auto")],
        "seeds": [cell(method=m, seed=s) for s in (0, 1, 2) for m in BEST],
        "ratios": [
            cell(method=m, ratio=r, prune=p) for r in (0.1, 0.27, 0.35) for p in ("one-shot", "flap") for m in BEST
        ],
        "tokens": [cell(method="refit-all-o", windows=n) for n in (10, 128, 512, 2000)],
        "texts": [cell(method="refit-all-o", text=t) for t in ("passages", "lambada", "boolq")],
        "first": [cell(method="refit-all-o", options=o) for o in ({}, {"weighting": "equal"}, {"first": 0.0})],
        "tuning": [
            cell(method=CHAIN),
            *(cell(method=CHAIN, options={"tail_blocks": n}) for n in (4, 8)),
            *(cell(method=CHAIN, options={"rate": rate}) for rate in (1e-4, 1e-3)),
            *(cell(method=CHAIN, options={"steps": n}) for n in (100, 200)),
            *(cell(method=CHAIN, windows=n) for n in (128, 512)),
        ],
        "tasks": [cell(method=m, documents=DOCUMENTS) for m in ("original", "none", "auto")],
    }[part]


def clocks() -> tuple[float, float]:
    """Now, and the processor's time of this process, in seconds."""
    return time.perf_counter(), time.process_time()


def seconds_since(began: float, processor: float) -> dict[str, float]:
    """What passed since `clocks`; of the processor's time a thread's share."""
    now, of_processor = clocks()
    return {"seconds": now - began, "processor_seconds": (of_processor - processor) / torch.get_num_threads()}


def takes(method: str, option: str) -> bool:
    """Whether the option changes what the method does."""
    return method in TAKEN_BY[option]


class Study:
    """The texts and models, each made once."""

    def __init__(self, wikitext: str) -> None:
        self.decoder = pyprune.load("smollm2-135m")
        paragraphs = boolq()
        kept = len(paragraphs) // 2  # paragraphs before it are held out, those behind it are for calibration
        tokens = HELD_OUT_WINDOWS * SEQ_LEN
        self.held_out = {
            "wikitext-2": evaluation(self.decoder, wikitext, tokens=tokens).input_ids,
            "boolq": evaluation(self.decoder, Texts("BoolQ", paragraphs[:kept]), tokens=tokens).input_ids,
        }
        judged = [*paragraphs[:kept], Path(wikitext).read_text("utf-8")]
        self._texts = {
            name: Texts(name, without_quotes(documents, judged))
            for name, documents in {
                "passages": passages(), "lambada": lambada(), "boolq": paragraphs[kept:]
            }.items()
        }  # fmt: skip
        self._streams: dict[str, Any] = {}
        self._prunings: dict[tuple[str, float, int], pyprune.Pruning] = {}
        self._losses: dict[Any, dict[str, float]] = {}
        self._base: dict[str, Any] = {}
        self._stages: dict[str, tuple[Any, list[dict[str, Any]]]] = {}

    def draw(self, text: str, count: int, seed: int) -> Windows:
        """`count` calibration windows, in the order of the text."""
        if text not in self._streams:
            self._streams[text] = Encoder(self.decoder, self._texts[text]).stream()
        return draw_windows(self._streams[text], count, SEQ_LEN, seed, text)

    def windows(self, text: str, count: int, seed: int) -> torch.Tensor:
        """Their token ids."""
        return self.draw(text, count, seed).input_ids

    def pruning(self, way: str, ratio: float, seed: int) -> pyprune.Pruning:
        """By 10 windows of LAMBADA, as the paper has it for its own text."""
        key = way, ratio, seed
        if key not in self._prunings:
            windows = calibration(self.decoder, "demo:lambada", 10, SEQ_LEN, seed)
            if way == "one-shot":
                scores = pyprune.score(self.decoder, windows.input_ids)
                self._prunings[key] = pyprune.depth(scores, self.decoder, ratio=ratio)
            elif way == "greedy":
                self._prunings[key] = pyprune.search(self.decoder, windows.input_ids, "greedy", ratio=ratio).pruning()
            else:
                ids = windows.input_ids
                self._prunings[key] = pyprune.width(self.decoder, method=way, ratio=ratio, calibration=ids)
        return self._prunings[key]

    def repaired(self, cell: dict[str, Any], pruned: Any) -> tuple[Any, list[dict[str, Any]]]:
        """The pruned model repaired by the cell's methods in order, and of each what it says and its seconds.

        What several cells in a row begin with is repaired once for all of them. Where gradient steps follow, a closed
        form takes as many windows as it does in a chain that is repaired at once.
        """
        base = {name: value for name, value in cell.items() if name not in ("method", "options", "documents")}
        if base != self._base:
            self._base, self._stages = base, {}
        ids = self.windows(cell["text"], cell["windows"], cell["seed"])
        decoder, stages = pruned, []
        chain = cell["method"].split("+")
        for place, method in enumerate(chain):
            begun = chain[: place + 1]
            options = {name: value for name, value in cell["options"].items() if any(takes(m, name) for m in begun)}
            key = json.dumps([begun, options, bool(set(BY_STEPS) & set(chain))], sort_keys=True)
            if key not in self._stages:
                of_method = {name: value for name, value in options.items() if takes(method, name)}
                began = clocks()
                is_followed = bool(set(BY_STEPS) & set(chain[place + 1 :])) and method not in BY_STEPS
                taken = ids[spread(len(ids), enough_samples(pruned, SEQ_LEN))] if is_followed else ids
                report = repair_with_report(self.decoder, decoder, taken, method, **of_method)
                stage = {**report.to_dict(), **seconds_since(*began)}
                self._stages[key] = report.decoder, [*stages, stage]
            decoder, stages = self._stages[key]
            if method in BY_STEPS:  # nothing comes behind it
                del self._stages[key]
        return decoder, stages

    def log_perplexities(self, decoder: Any) -> dict[str, float]:
        return {name: math.log(pyprune.perplexity(decoder, ids)) for name, ids in self.held_out.items()}

    def run_tasks(self, cell: dict[str, Any]) -> dict[str, Any]:
        """The seven tasks of the original ("original"), the pruned model ("none") or a repaired one."""
        began = clocks()
        decoder = self.decoder
        if cell["method"] != "original":
            decoder = pyprune.apply(decoder, self.pruning(cell["prune"], cell["ratio"], cell["seed"]))
        if cell["method"] not in ("original", "none"):
            decoder, _ = self.repaired(cell, decoder)
        tasks = pyprune.evaluate(decoder, tasks="paper", limit=cell["documents"]).tasks
        return {"tasks": tasks, **seconds_since(*began)}

    def run(self, cell: dict[str, Any]) -> dict[str, Any]:
        """One cell's result."""
        if "documents" in cell:
            return self.run_tasks(cell)
        pruning = self.pruning(cell["prune"], cell["ratio"], cell["seed"])
        pruned = pyprune.apply(self.decoder, pruning)
        for key, model in (("original", self.decoder), ((cell["prune"], cell["ratio"], cell["seed"]), pruned)):
            if key not in self._losses:
                self._losses[key] = self.log_perplexities(model)
        original = self._losses["original"]
        lost = self._losses[cell["prune"], cell["ratio"], cell["seed"]]
        repaired, stages = self.repaired(cell, pruned)
        reached = self.log_perplexities(repaired)
        return {
            "removed": pruning.to_dict() if cell["prune"] in ("one-shot", "greedy") else {"made_by": pruning.made_by},
            "perplexity": {
                name: {
                    "original": math.exp(original[name]),
                    "pruned": math.exp(lost[name]),
                    "repaired": math.exp(reached[name]),
                    "recovered": (lost[name] - reached[name]) / (lost[name] - original[name]),
                }
                for name in reached
            },
            "stages": stages,
            **{name: sum(stage[name] for stage in stages) for name in ("seconds", "processor_seconds")},
        }


def this_machine(done: dict[str, Any], decoder: Any) -> int:
    """The place of this machine among the file's machines, where it is added if it is new. Cells of one study may come
    from several machines: their minutes are not comparable then, and gradient steps differ in their products."""
    machines = done.setdefault("machines", [])
    here = {**lasting(describe()), "products_of_steps": default_precision(decoder)}
    if here not in machines:
        machines.append(here)
    return machines.index(here)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts", default=",".join(WITHOUT_ASKING), help="which parts, with commas (default: all but tuning)"
    )
    parser.add_argument("--out", default="bench/results/repair-smollm2.json", help="the JSON file")
    parser.add_argument("--wikitext", help="WikiText-2's test split, a text file (required to run)")
    parser.add_argument("--closed-forms", action="store_true", help="no cells with gradient steps, no tasks")
    parser.add_argument("--list", action="store_true", help="print the parts and their time, and leave")
    options = parser.parse_args()
    if options.list:
        for name, about in PARTS.items():
            print(f"{name}: {len(cells(name))} cells; {about}")
        return
    if options.wikitext is None:
        parser.error("--wikitext: the test split's text file is expected")
    out = Path(options.out)
    done: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"format": FORMAT, "cells": []}
    if done["format"] != FORMAT:
        parser.error(f"--out {out}: is of format {done['format']!r}, not {FORMAT!r}")
    study = None
    for part in options.parts.split(","):
        for cell in cells(part):
            by_steps = "documents" in cell or set(BY_STEPS) & set(cell["method"].split("+"))
            if any(entry["cell"] == cell for entry in done["cells"]) or (options.closed_forms and by_steps):
                continue
            study = study or Study(options.wikitext)
            entry = {"part": part, "cell": cell, "machine": this_machine(done, study.decoder), **study.run(cell)}
            done["cells"].append(entry)
            write_json(out, done)
            if "tasks" in entry:
                shares = {name: f"{values['acc']:.3f}" for name, values in entry["tasks"].items()}
            else:
                shares = {name: f"{value['recovered']:.1%}" for name, value in entry["perplexity"].items()}
            print(part, cell["method"], cell["prune"], shares, f"{entry['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
