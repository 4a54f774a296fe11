"""What an hour of LoRA wins back on SmolLM2: `python -m bench.recovery --wikitext FILE [--parts NAME,...]`.

A fifth of the parameters goes, by the blocks' PPL. The model is then trained on `demo:passages` for `--minutes`: as
it is ("plain"), after the repair ("repaired"), or after the repair and with the original as teacher ("distilled"). The
number of steps comes from the speed of the first few. Held out is WikiText-2's test split, which neither the repair nor
the training sees, and BoolQ passages, which neither sees either. The JSON file has each curve, the perplexities of
original, pruned, repaired and trained model, and the share of the lost log-perplexity that came back.

A finished part is in the file at once; an interrupted one goes on where it ended.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch

import pyprune
from bench.repair_study import WINDOWS_OF_STEPS, Study
from pyprune.files import write_bytes, write_json
from pyprune.ops import native
from pyprune.recovery import repair_with_report
from pyprune.retraining import retrain_with_report
from pyprune.retraining.curve import Point
from pyprune.retraining.settings import PRECISIONS
from pyprune.scoring.calibration.demonstrations import TRAINING
from pyprune.study.machine import describe
from pyprune.study.training_plot import training_curve

FORMAT = "pyprune recovery 6"
RATIO = 0.2
"""The share of the parameters that goes."""

REPAIR, REPAIR_MINUTES = "auto", 15
"""The repair that training starts from, and what auto may take."""

PARTS = {
    "plain": "LoRA on the pruned model",
    "repaired": "LoRA after the repair",
    "distilled": "LoRA after the repair, towards the original's predictions",
}
DISTILL_WEIGHT = 1.0
"""The share of the loss that is the teacher's: all of it, so next tokens do not count."""

PROBE = 16
"""Steps that the speed is taken from; the first one is left out."""

RESERVE = 0.92
"""The share of the minutes that is planned for: the held-out losses take some, and the machine's speed varies."""


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Of every training: the paper's rank and targets; smaller steps at a higher rate, as an hour is short."""
    return {
        "precision": options.precision, "batch": options.batch, "micro_batch": min(4, options.batch),
        "cutoff": options.cutoff, "learning_rate": options.learning_rate, "warmup_steps": 50, "held_out": 32, "seed": 0,
    }  # fmt: skip


class Recovery:
    """The models, and the results so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.out = Path(options.out)
        asked = {
            **settings(options), "text": TRAINING, "distill_weight": DISTILL_WEIGHT, "repair": options.repair,
            "minutes": options.minutes,
        }  # fmt: skip
        self.done: dict[str, Any] = {"format": FORMAT, "settings": asked, "parts": {}, "plans": {}}
        if self.out.exists():
            self.done = json.loads(self.out.read_text())
            if (self.done["format"], self.done["settings"]) != (FORMAT, asked):
                raise SystemExit(f"{self.out}: has other settings; another --out is expected")
        self.study = Study(options.wikitext)
        self.original = self.study.decoder
        self.pruned = pyprune.apply(self.original, self.study.pruning("one-shot", RATIO, 0))
        if "perplexity" not in self.done:
            self.done["removed"] = self.study.pruning("one-shot", RATIO, 0).to_dict()
            self.done["perplexity"] = {
                name: {text: math.exp(value) for text, value in self.study.log_perplexities(model).items()}
                for name, model in (("original", self.original), ("pruned", self.pruned))
            }
            self.keep()

    def keep(self) -> None:
        write_json(self.out, self.done)

    def repaired(self) -> Any:
        """The pruned model after the repair, made once and kept in a folder."""
        folder = self.out.with_suffix(".repaired")
        if "repair" not in self.done:
            shutil.rmtree(folder, ignore_errors=True)
            began = time.perf_counter()
            ids = self.study.windows("passages", WINDOWS_OF_STEPS, 0)
            method = self.options.repair
            limit = {"minutes": REPAIR_MINUTES} if method == "auto" else {}
            precision = self.options.precision
            report = repair_with_report(self.original, self.pruned, ids, method, precision=precision, **limit)
            seconds = time.perf_counter() - began
            report.decoder.save(folder)
            reached = self.perplexities(report.decoder)
            self.done["repair"] = {
                "machine": describe(), "windows": WINDOWS_OF_STEPS, "seconds": seconds, "perplexity": reached,
                "recovered": self.recovered(reached), **report.to_dict(),
            }  # fmt: skip
            self.keep()
        return pyprune.load(folder)

    def perplexities(self, model: Any) -> dict[str, float]:
        return {text: math.exp(value) for text, value in self.study.log_perplexities(model).items()}

    def recovered(self, reached: dict[str, float]) -> dict[str, float]:
        """Of each text the share of the lost log-perplexity that is back."""
        of = self.done["perplexity"]
        return {
            text: math.log(of["pruned"][text] / value) / math.log(of["pruned"][text] / of["original"][text])
            for text, value in reached.items()
        }

    def run(self, part: str) -> None:
        """Train one part, from its state where it was interrupted."""
        model = self.pruned if part == "plain" else self.repaired()
        common: dict[str, Any] = {"text": TRAINING, **settings(self.options)}
        if part == "distilled":
            teacher = self.original.to(dtype=torch.bfloat16) if self.options.precision == "bf16" else self.original
            common |= {"distill_from": teacher, "distill_weight": DISTILL_WEIGHT}
        if part not in self.done["plans"]:
            curve = retrain_with_report(model, **common | {"held_out": 0, "eval_text": None}, steps=PROBE).curve
            seconds = (curve[-1].seconds - curve[1].seconds) / (PROBE - 1)
            self.done["plans"][part] = {
                "seconds_of_a_step": seconds, "steps": int(RESERVE * 60 * self.options.minutes / seconds)
            }  # fmt: skip
            self.keep()
        steps, journal = self.done["plans"][part]["steps"], self.out.with_suffix(f".{part}.journal")
        result = retrain_with_report(
            model, **common, steps=steps, eval_steps=max(1, steps // 12), eval_text=self.options.wikitext,
            resume=str(journal),
        )  # fmt: skip
        reached = self.perplexities(result.decoder)
        self.done["parts"][part] = {
            "machine": describe(),
            "perplexity": reached,
            "recovered": self.recovered(reached),
            "training": result.to_dict(),
            "curve": [point.to_dict() for point in result.curve],
        }
        self.keep()
        journal.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="which parts, with commas (default: all)")
    parser.add_argument("--wikitext", required=True, help="WikiText-2's test split, a text file")
    parser.add_argument("--minutes", type=float, default=60, help="of each training (default: 60)")
    parser.add_argument("--repair", default=REPAIR, help=f"the method of repair (default: {REPAIR})")
    parser.add_argument("--batch", type=int, default=2, help="sequences of a step (default: 2)")
    parser.add_argument("--cutoff", type=int, default=256, help="tokens of a sequence (default: 256)")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="bf16" if native.multiplies_bfloat16() else "fp32",
        help="of the matrix products (default: bf16 where the processor multiplies it)",
    )
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--out", default="bench/results/recovery-smollm2.json", help="the JSON file")
    options = parser.parse_args()
    parts = options.parts.split(",")
    for name in set(parts) - PARTS.keys():
        parser.error(f"--parts {name}: {', '.join(PARTS)} are accepted")
    recovery = Recovery(options)
    for part in parts:
        if part not in recovery.done["parts"]:
            recovery.run(part)
        entry = recovery.done["parts"][part]
        curve = [Point(**point) for point in entry["curve"]]
        title = f"{PARTS[part]}; held out: WikiText-2"
        write_bytes(recovery.out.with_name(f"{recovery.out.stem}-{part}.png"), training_curve(curve, title))
        shares = {text: f"{share:.1%}" for text, share in entry["recovered"].items()}
        print(part, shares, f"{entry['training']['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
