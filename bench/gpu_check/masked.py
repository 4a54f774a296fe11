"""Part: what a block costs that a mask on the device leaves out, beside one kept and one left out by the host."""

from __future__ import annotations

import statistics
from typing import Any

import torch

import pyprune
from bench.gpu_check import predict
from bench.gpu_check.decode import PROMPT
from bench.gpu_check.environment import gpu_report
from bench.gpu_check.replays import decode_replay, interleaved_replays
from bench.gpu_check.settings import Save, Settings
from pyprune.models.decoder import Decoder
from pyprune.runtime.skip import Skip

SPEC, LEFT_OUT, LENGTH, BATCHES, ROUNDS, PER_ROUND = "shape:llama-7b", tuple(range(10, 18)), 140, (1, 16), 11, 8
DRY_SPEC, DRY_LEFT_OUT, DRY_LENGTH, DRY_BATCHES, DRY_ROUNDS = "shape:tiny", (1,), 20, (1,), 2


def run(settings: Settings, save: Save) -> dict[str, Any]:
    """Interleaved replays of one step: nothing left out, blocks left out by the host, by a mask, and a clear mask.

    `masked_share`: a masked block's seconds over a running block's, from the medians.
    """
    dry, device = settings.dry_run, torch.device(settings.device)
    spec, gone, length, batches, rounds = (
        (DRY_SPEC, DRY_LEFT_OUT, DRY_LENGTH, DRY_BATCHES, DRY_ROUNDS)
        if dry
        else (SPEC, LEFT_OUT, LENGTH, BATCHES, ROUNDS)
    )
    decoder = pyprune.load(spec, dtype=torch.bfloat16, device=device)
    result: dict[str, Any] = {"model": spec, "dtype": "bfloat16", "left_out": list(gone), "cache": length}
    result["timings"] = []
    for batch in batches:
        steps = {name: step_of(decoder, batch, length, skip) for name, skip in ways(decoder, gone).items()}
        seconds = interleaved_replays(steps, device, rounds, PER_ROUND)
        line = {"batch": batch, "seconds": seconds, **shares(seconds, len(gone))}
        if settings.bandwidth:
            machine = predict.measured_machine(settings, device)
            line["predicted_masked_share_at_most"] = predict.masked_share(decoder, batch, length, machine)
        result["timings"].append(line)
        save(result)
        del steps
    return {**result, "gpu": gpu_report()}


def ways(decoder: Decoder, gone: tuple[int, ...]) -> dict[str, Skip]:
    """Ways of leaving out the blocks `gone`, and nothing."""
    clear = torch.zeros(len(decoder.blocks), 2, dtype=torch.bool, device=decoder.device)
    mask = clear.clone()
    mask[list(gone)] = True
    return {"nothing": None, "host": list(gone), "mask": mask, "clear mask": clear}


def step_of(decoder: Decoder, batch: int, length: int, skip: Skip) -> Any:
    """The step under `skip`, of an engine of its own: an engine has one mask and one plan in force."""
    engine = pyprune.Engine(decoder, max_batch=batch, max_len=length)
    prompts = torch.randint(0, decoder.vocab_size, (batch, PROMPT), device=decoder.device)
    return decode_replay(engine, prompts, length // 2, skip)


def shares(seconds: dict[str, list[float]], gone: int) -> dict[str, Any]:
    """What the medians say of one block that runs, one that is masked, and of a clear mask over the whole step."""
    step = {name: statistics.median(samples) for name, samples in seconds.items()}
    block, masked = ((step[name] - step["host"]) / gone for name in ("nothing", "mask"))
    return {
        "step_seconds": step,
        "block_seconds": block,
        "masked_block_seconds": masked,
        "masked_share": masked / block if block else None,
        "clear_mask_share": step["clear mask"] / step["nothing"] - 1,
    }


def warm(settings: Settings) -> str:
    """Run the masked steps once on a short model of the same sizes."""
    spec = DRY_SPEC if settings.dry_run else f"{SPEC},blocks=3"
    decoder = pyprune.load(spec, dtype=torch.bfloat16, device=settings.device)
    batches = DRY_BATCHES if settings.dry_run else BATCHES
    for batch in batches:
        for skip in ways(decoder, (1,)).values():
            step_of(decoder, batch, DRY_LENGTH if settings.dry_run else LENGTH, skip)()
    return f"{spec}, batches {batches}"
