"""Score a replacement library of Model-Optimizer's Puzzletron in one pass, in place of one forward pass for each.

    python examples/score_puzzletron_library.py MODEL replacement_library.json TEXT

MODEL is the parent: a Hugging Face directory. TEXT is a UTF-8 file to score on.
"""

from __future__ import annotations

import sys

import pyprune
from pyprune.scoring.calibration import calibration
from pyprune.scoring.other_tools import puzzletron_candidates


def main(model: str, library: str, text: str) -> None:
    decoder = pyprune.load(model)
    ids = calibration(decoder, text).input_ids
    scores = pyprune.score(decoder, ids, candidates=puzzletron_candidates(decoder, library), measure=["kl", "ppl"])
    names = dict(zip(scores.units, scores.names(), strict=True))
    for unit in scores.order():
        print(names[unit], scores.values[unit[1]], scores.measures["ppl"].values[unit[1]])


if __name__ == "__main__":
    main(*sys.argv[1:])
