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
from pyprune.scoring.calibration import calibration
from pyprune.scoring.footprint import fit_pass
from pyprune.scoring.layered_decoder import LayeredDecoder
from pyprune.scoring.removals import NO_REMOVAL, removal_of, units_of
from tests.runtime.measure_memory import WARM_UP, resident

STATES = 400 << 20
"""Bytes that a greedy search is given for states, beside its pass."""


def measure(spec: str, work: str, samples: int, seq_len: int) -> dict[str, int]:
    """Load, score or search for three blocks, and compare the most that was resident with the plan."""
    warm = pyprune.load(WARM_UP)
    pyprune.search(warm, calibration(warm, samples=20, seq_len=128).input_ids, "one-shot", count=1, unit="mha")
    decoder = pyprune.load(spec)
    ids = calibration(decoder, samples=samples, seq_len=seq_len).input_ids
    removals = [NO_REMOVAL, *(removal_of(decoder, [unit]) for unit in units_of(decoder, "block"))]
    planned = fit_pass(LayeredDecoder(decoder), tuple(ids.shape), len(removals), len(removals), None).bytes
    gc.collect()
    pyprune.runtime.memory.give_back()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    if work == "score":
        pyprune.score(decoder, ids)
    else:
        planned += STATES
        pyprune.search(decoder, ids, "greedy", count=3, memory=planned)
    logits = len(removals) * ids.numel() * decoder.vocab_size * 4
    return {"measured": resident("VmHWM") - before, "planned": planned, "logits": logits}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--work", choices=("score", "greedy"), default="score")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--seq-len", type=int, default=128)
    options = parser.parse_args()
    print(json.dumps(measure(options.model, options.work, options.samples, options.seq_len)))
