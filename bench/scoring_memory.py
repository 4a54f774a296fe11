"""What scoring takes beyond the loaded model on this machine, beside what is planned: one line of JSON.

    MALLOC_MMAP_THRESHOLD_=65536 python -m bench.scoring_memory smollm2-135m --work score

Bytes are the growth of this process's resident memory (Linux). With that variable glibc hands freed tensors back at
once.
"""

from __future__ import annotations

import argparse
import gc
import json
from pathlib import Path

import pyprune
from bench.library import library
from pyprune.scoring.calibration import calibration
from pyprune.scoring.footprint import fit_pass
from pyprune.scoring.layered_decoder import LayeredDecoder
from pyprune.scoring.planning import plan_scoring
from pyprune.scoring.removals import NO_REMOVAL, removal_of, units_of
from tests.runtime.measure_memory import WARM_UP, resident

STATES = 400 << 20
"""Bytes that a greedy search is given for states, beside its pass."""


def measure(spec: str, work: str, samples: int, seq_len: int, blocks: int, measures: list[str]) -> dict[str, int]:
    """Load, score, search for three blocks, or score a library of candidates for the first `blocks` blocks by these
    measures; compare the most that was resident with the plan."""
    warm = pyprune.load(WARM_UP)
    pyprune.search(warm, calibration(warm, samples=20, seq_len=128).input_ids, "one-shot", count=1, unit="mha")
    decoder = pyprune.load(spec)
    ids = calibration(decoder, samples=samples, seq_len=seq_len).input_ids
    removals = [NO_REMOVAL, *(removal_of(decoder, [unit]) for unit in units_of(decoder, "block"))]
    planned = fit_pass(LayeredDecoder(decoder), tuple(ids.shape), len(removals), len(removals), None).bytes
    candidates = []
    if work == "candidates":
        candidates = [alternative.candidate for alternative in library(decoder, range(blocks))]
        planned = plan_scoring(decoder, len(candidates), samples, seq_len, measure=measures).bytes
    gc.collect()
    pyprune.runtime.memory.give_back()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    if work == "score":
        pyprune.score(decoder, ids)
    elif work == "candidates":
        pyprune.score(decoder, ids, candidates=candidates, measure=measures)
    else:
        planned += STATES
        pyprune.search(decoder, ids, "greedy", count=3, memory=planned)
    logits = len(removals) * ids.numel() * decoder.vocab_size * 4
    return {"measured": resident("VmHWM") - before, "planned": planned, "logits": logits}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--work", choices=("score", "greedy", "candidates"), default="score")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--measure", default="ppl")
    options = parser.parse_args()
    sizes = options.samples, options.seq_len, options.blocks
    print(json.dumps(measure(options.model, options.work, *sizes, options.measure.split(","))))
