"""Run an iterative pruning whole, and again killed at random moments: FOLDER KILLS SEED. Leaves FOLDER/whole, /killed.

Each run is a fork of this process, which itself computes nothing: so a run costs no imports, and no thread is lost.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

import pyprune
from pyprune.retraining.iterate import iterate

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


def started(out: Path) -> int:
    child = os.fork()
    if not child:
        work(out)
        os._exit(0)
    return child


def main(folder: str, kills: str, seed: str) -> None:
    whole, killed = Path(folder) / "whole", Path(folder) / "killed"
    begin = time.monotonic()
    assert os.waitpid(started(whole), 0)[1] == 0
    duration = time.monotonic() - begin
    draw = random.Random(int(seed))
    done = 0
    for _ in range(int(kills)):
        child = started(killed)
        time.sleep(draw.uniform(0, 0.4 * duration))
        os.kill(child, signal.SIGKILL)
        if os.WIFSIGNALED(os.waitpid(child, 0)[1]):
            done += 1
        if killed.exists():  # it was quicker; the rest of the kills begin again
            shutil.rmtree(killed)
    assert os.waitpid(started(killed), 0)[1] == 0
    for scratch in Path(folder).glob(".*.part"):  # of a kill within the last write: what no name leads to
        shutil.rmtree(scratch)
    print(json.dumps({"kills": done}))


if __name__ == "__main__":
    main(*sys.argv[1:])
