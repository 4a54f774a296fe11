"""Prune iteratively whole, and again killed at random moments: FOLDER KILLS SEED. Leaves FOLDER/whole and /killed."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

import pyprune
from pyprune.retraining.iterate import iterate
from tests.retraining.killing import killed_at_random

SIZES = "shape:hidden=24,blocks=6,heads=4,kv_heads=2,head_dim=6,ffn=37,vocab=97"


def train(pruned, steps, seed, state, progress):
    """Other weights, after a while in which a kill can come."""
    draw = torch.Generator().manual_seed(seed)
    time.sleep(0.1)
    return pruned.map(lambda t: t * (1 + 0.02 * torch.randn(t.shape, generator=draw)))


def work(out: Path) -> None:
    model = pyprune.load(SIZES, dtype=torch.float32)
    ids = torch.randint(0, 97, (2, 4, 9), generator=torch.Generator().manual_seed(3))
    iterate(
        model, ids[0], held_out=ids[1], count=3, steps=5, train=train, one_shot_retrained=True, out=out, resume=True
    )


if __name__ == "__main__":
    killed_at_random(work, *sys.argv[1:], latest=0.4)
