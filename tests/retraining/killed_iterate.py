"""Prune iteratively whole, and again killed at random moments: FOLDER KILLS SEED shaken|retrain. Leaves FOLDER/whole
and FOLDER/killed."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

import pyprune
from pyprune.retraining.iterate import iterate
from tests.retraining.killing import killed_at_random

SIZES = "shape:hidden=24,blocks=6,heads=4,kv_heads=2,head_dim=6,ffn=37,vocab=97"


def shaken(pruned, steps, seed, state, progress):
    """Other weights, after a while in which a kill can come."""
    draw = torch.Generator().manual_seed(seed)
    time.sleep(0.1)
    return pruned.map(lambda t: t * (1 + 0.02 * torch.randn(t.shape, generator=draw)))


def work(out: Path, **training: Any) -> None:
    model = pyprune.load(SIZES, dtype=torch.float32)
    ids = torch.randint(0, 97, (2, 4, 9), generator=torch.Generator().manual_seed(3))
    iterate(model, ids[0], held_out=ids[1], one_shot_retrained=True, out=out, resume=True, **training)


TRAININGS = {
    "shaken": {"count": 3, "steps": 5, "train": shaken},
    "retrain": {  # its state is kept after every step
        "count": 1, "steps": 5, "text": torch.randint(0, 97, (40, 9), generator=torch.Generator().manual_seed(4)),
        "cutoff": 9, "batch": 4, "micro_batch": 4, "save_seconds": 0,
    },
}  # fmt: skip


if __name__ == "__main__":
    import peft  # noqa: F401  # in the parent, for all children

    *given, training = sys.argv[1:]
    killed_at_random(partial(work, **TRAININGS[training]), *given)
