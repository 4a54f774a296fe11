"""Part: decoding against Hugging Face with a static cache and `torch.compile(mode="max-autotune")`.

The model is a short one of LLaMA-7B's sizes: the peer takes minutes to compile all 32 blocks.
"""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

import pyprune
from bench.gpu_check.environment import gpu_report
from bench.gpu_check.race import quiet
from bench.gpu_check.settings import Save, Settings
from bench.peers import Absent, HuggingFaceCompiled, PyPrune, opened
from bench.peers.peer import Decoding
from pyprune.study.device import synchroniser
from pyprune.study.measure import speedup

SPEC, BATCH, PROMPT, STEPS, ROUNDS, MODE = "shape:llama-7b,blocks=8", 1, 12, 64, 9, "max-autotune"
COMPILE_SECONDS = 80
"""Of the peer; less than the part's own limit, so that what pyprune takes is told in any case."""

DRY_SPEC, DRY_STEPS, DRY_ROUNDS, DRY_MODE = "shape:tiny", 3, 1, None


def run(settings: Settings, save: Save) -> dict[str, Any]:
    """Seconds of STEPS decode steps of each, interleaved, their prefill untimed."""
    quiet()
    dry, device = settings.dry_run, torch.device(settings.device)
    spec, steps, rounds, mode = (DRY_SPEC, DRY_STEPS, DRY_ROUNDS, DRY_MODE) if dry else (SPEC, STEPS, ROUNDS, MODE)
    decoder = pyprune.load(spec, dtype=torch.bfloat16, device=device)
    generator = torch.Generator().manual_seed(settings.seed)
    prompts = torch.randint(0, decoder.vocab_size, (BATCH, PROMPT), generator=generator).to(device)
    result: dict[str, Any] = {
        "gpu": gpu_report(), "model": spec, "dtype": "bfloat16", "batch": BATCH, "decode_steps": steps, "mode": mode,
        "bytes_per_token": decoder.bytes_per_token(), "bandwidth": settings.bandwidth, "absent": {}, "preparing": {},
    }  # fmt: skip
    ready: dict[str, Decoding] = {}
    with ExitStack() as stack:
        for peer in (PyPrune(), HuggingFaceCompiled(mode, COMPILE_SECONDS)):
            before = time.perf_counter()
            try:
                decoding = stack.enter_context(opened(peer, decoder, BATCH, PROMPT + steps))
                decoding.prefill(prompts)
                decoding.decode(2)
                ready[peer.name] = decoding
            except Absent as reason:
                result["absent"][peer.name] = str(reason)
            result["preparing"][peer.name] = time.perf_counter() - before
            save(result)
        result["seconds"] = _rounds(ready, prompts, steps, rounds, device)
    medians = {name: statistics.median(taken) / steps for name, taken in result["seconds"].items()}
    result["step_seconds"] = medians
    if settings.bandwidth:
        size = decoder.bytes_per_token()
        result["share"] = {name: size / step / settings.bandwidth for name, step in medians.items()}
    if len(medians) == 2:
        theirs, own = (result["seconds"][name] for name in (HuggingFaceCompiled.name, "pyprune"))
        result["speedup"] = speedup(theirs, own)
    return result


def _rounds(
    ready: dict[str, Decoding], prompts: torch.Tensor, steps: int, rounds: int, device: torch.device
) -> dict[str, list[float]]:
    synchronise = synchroniser(device) or (lambda: None)
    taken: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(rounds):
        for name, decoding in ready.items():
            decoding.prefill(prompts)
            synchronise()
            decode = partial(decoding.decode, steps)
            before = time.perf_counter()
            decode()
            synchronise()
            taken[name].append(time.perf_counter() - before)
    return taken
