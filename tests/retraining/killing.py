"""Work that is killed at random moments and goes on, beside the same work undisturbed.

Each run is a fork of this process, which itself computes nothing: so a run costs no imports, and no thread is lost.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path


def killed_at_random(work: Callable[[Path], None], folder: str, kills: str, seed: str) -> None:
    """Run `work` whole into FOLDER/whole, and killed into FOLDER/killed, at any moment of the whole run's duration;
    print how many kills met it: as many as asked for."""
    whole, killed = Path(folder) / "whole", Path(folder) / "killed"
    begin = time.monotonic()
    assert os.waitpid(started(work, whole), 0)[1] == 0
    duration = time.monotonic() - begin
    draw = random.Random(int(seed))
    met = tries = 0
    while met < int(kills):
        tries += 1
        assert tries < 20 * int(kills), f"{met} of {tries} kills met the process"
        child = started(work, killed)
        time.sleep(draw.uniform(0, duration))
        os.kill(child, signal.SIGKILL)
        met += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        if killed.exists():  # it was quicker; the rest of the kills begin again
            shutil.rmtree(killed)
    assert os.waitpid(started(work, killed), 0)[1] == 0
    print(json.dumps({"kills": met}))


def started(work: Callable[[Path], None], out: Path) -> int:
    """The process that runs it."""
    child = os.fork()
    if not child:
        work(out)
        os._exit(0)
    return child
