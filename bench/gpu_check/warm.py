"""Part: compiles, beside the operators' checks, the Triton kernels that the timed parts will start.

Those parts would otherwise compile them one by one, in the GPU's time. Short models of the same sizes ask for the same
kernels, which Triton keeps in its cache on disk.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

import pyprune
from bench.gpu_check import compiled, decode, scoring, skipping, table1
from bench.gpu_check.environment import gpu_report
from bench.gpu_check.settings import Save, Settings
from pyprune.models.decoder import Decoder
from pyprune.study.compare import ours
from pyprune.study.protocols import PROTOCOLS

BLOCKS = 2


def run(settings: Settings, save: Save) -> dict[str, Any]:
    """Run the share that the options name (`parts.WARM`), a few tokens each; what was run."""
    share, device = settings.options["share"], torch.device(settings.device)
    result: dict[str, Any] = {"gpu": gpu_report(), "done": []}

    def done(what: str) -> None:
        result["done"].append(what)
        save(result)

    if share == "decode":
        for spec in decode.SPECS:
            decoder = _short(spec, settings, device)
            for batch in decode.BATCHES:
                ours(decoder, max(decode.BATCHES), decode.PROMPT + decode.NEW)(_prompts(decoder, batch), 3)
                done(f"{spec}, batch {batch}")
        decoder = _short(skipping.SPEC, settings, device)
        mask = torch.zeros(len(decoder.blocks), 2, dtype=torch.bool, device=device)
        for length, skip in ((skipping.PROMPT + skipping.NEW, mask), (compiled.PROMPT + compiled.STEPS, None)):
            engine = pyprune.Engine(decoder, max_batch=1, max_len=length)
            engine.generate(_prompts(decoder, 1), max_new_tokens=3, skip=skip)
        done("a device mask, the compiled peer's length")
    elif share == "scoring":
        decoder = _short(scoring.SPEC, settings, device)
        pyprune.score(decoder, torch.zeros(scoring.SAMPLES, scoring.TOKENS, dtype=torch.int64))
        done(scoring.SPEC)
    elif share in ("table1, even", "table1, odd"):
        original, quick = _short(table1.SPEC, settings, device), PROTOCOLS["quick"]
        narrow = [one for one in table1.with_padded(table1.PAPER) if one.width != table1.WIDTH]
        for sizes in narrow[share.endswith("odd") :: 2]:
            fitting = table1.scaled(replace(sizes, blocks=table1.BLOCKS), original)
            decoder = table1.narrowed(original, fitting.heads, fitting.width)
            for batch in table1.BATCHES:
                ours(decoder, batch, quick.input_tokens + quick.output_tokens[0])(_prompts(decoder, batch), 3)
            done(f"{sizes.method} {sizes.ratio}")
    else:
        raise ValueError(f"share: {share!r} is not known")
    return result


def _short(spec: str, settings: Settings, device: torch.device) -> Decoder:
    """A model of the same sizes with few blocks; a tiny one in a dry run."""
    name = table1.DRY_SPEC if settings.dry_run else f"{spec},blocks={BLOCKS}"
    return pyprune.load(name, dtype=torch.bfloat16, device=device)


def _prompts(decoder: Decoder, batch: int) -> torch.Tensor:
    return torch.zeros(batch, decode.PROMPT, dtype=torch.int64, device=decoder.device)
