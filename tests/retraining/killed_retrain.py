"""Retrain whole, and again killed at random moments: FOLDER KILLS SEED. Leaves FOLDER/whole and FOLDER/killed.

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
from pyprune.retraining import retrain

SIZES = "shape:hidden=24,blocks=4,heads=4,kv_heads=2,head_dim=6,ffn=31,vocab=61"


def work(out: Path) -> None:
    model = pyprune.apply(pyprune.load(SIZES), pyprune.Pruning(blocks=(1,)))
    ids = torch.randint(0, 61, (40, 12), generator=torch.Generator().manual_seed(3))
    retrain(model, text=ids, cutoff=12, steps=12, batch=4, save_seconds=0, eval_steps=5, out=out, resume=True)


def started(out: Path) -> int:
    child = os.fork()
    if not child:
        work(out)
        os._exit(0)
    return child


def main(folder: str, kills: str, seed: str) -> None:
    import peft  # noqa: F401  # in the parent, for all children

    whole, killed = Path(folder) / "whole", Path(folder) / "killed"
    begin = time.monotonic()
    assert os.waitpid(started(whole), 0)[1] == 0
    duration = time.monotonic() - begin
    draw = random.Random(int(seed))
    done = 0
    for _ in range(int(kills)):
        child = started(killed)
        time.sleep(draw.uniform(0, 0.5 * duration))
        os.kill(child, signal.SIGKILL)
        done += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        if killed.exists():  # it was quicker; the rest of the kills begin again
            shutil.rmtree(killed)
    assert os.waitpid(started(killed), 0)[1] == 0
    print(json.dumps({"kills": done}))


if __name__ == "__main__":
    main(*sys.argv[1:])
