"""Retrain whole, and again killed at random moments: FOLDER KILLS SEED. Leaves FOLDER/whole and FOLDER/killed."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import pyprune
from pyprune.retraining import retrain
from tests.retraining.killing import killed_at_random

SIZES = "shape:hidden=24,blocks=4,heads=4,kv_heads=2,head_dim=6,ffn=31,vocab=61"


def work(out: Path) -> None:
    model = pyprune.apply(pyprune.load(SIZES), pyprune.Pruning(blocks=(1,)))
    ids = torch.randint(0, 61, (40, 12), generator=torch.Generator().manual_seed(3))
    retrain(model, text=ids, cutoff=12, steps=12, batch=4, save_seconds=0, eval_steps=5, out=out, resume=True)


if __name__ == "__main__":
    import peft  # noqa: F401  # in the parent, for all children

    killed_at_random(work, *sys.argv[1:])
