"""Timing the rows of a comparison under Hugging Face transformers and under pyprune, all interleaved."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyprune.models.decoder import Decoder
from pyprune.models.transformers_model import to_transformers
from pyprune.runtime import Engine
from pyprune.study.device import synchroniser
from pyprune.study.measure import interleave
from pyprune.study.progress import Progress, silent
from pyprune.study.protocols import Protocol
from pyprune.study.rows import Row

Generate = Callable[[Tensor, int], object]
"""Prompts `[batch, tokens]` and the number of new tokens for each."""


def time_rows(
    rows: Sequence[Row], prompts: Tensor, batches: Sequence[int], protocol: Protocol, progress: Progress = silent
) -> list[dict[str, Any]]:
    """Raw seconds of each row under each engine, for each batch and output length, all interleaved round by round.

    The prompts are moved to the rows' device; both engines get them there.
    """
    device = rows[0].decoder.device
    prompts, synchronise = prompts.to(device), synchroniser(device)
    longest = protocol.input_tokens + max(protocol.output_tokens)
    engines: dict[tuple[str, str], Generate] = {}
    for row in rows:
        engines[row.name, "hf"] = hugging_face(row.decoder)
        engines[row.name, "pyprune"] = ours(row.decoder, max(batches), longest)
    timings = []
    total = len(batches) * len(protocol.output_tokens)
    for turn, (batch, length) in enumerate((b, n) for b in batches for n in protocol.output_tokens):
        runnables = {key: partial(generate, prompts[:batch], length) for key, generate in engines.items()}
        stage = f"timing {turn + 1} of {total}, batch {batch}, {length} tokens"
        # A collection in the middle of a run would be charged to whoever happens to allocate then.
        with _no_collection():
            samples = interleave(
                runnables, protocol.runs, protocol.warmups, done=partial(progress, stage), synchronise=synchronise
            )
        timings += [
            {"row": name, "engine": engine, "batch": batch, "output_tokens": length, "seconds": seconds}
            for (name, engine), seconds in samples.items()
        ]
    return timings


def hugging_face(decoder: Decoder) -> Generate:
    """Greedy `generate` of transformers: sdpa attention, not compiled, its default cache made anew for every call."""
    from transformers import GenerationConfig

    model = to_transformers(decoder, attn_implementation="sdpa")
    # Not the checkpoint's own settings: beams or penalties would time something else. Without an EOS no step is checked
    # for one and none must be forbidden: exactly `length` tokens, as under pyprune.
    model.generation_config = GenerationConfig(pad_token_id=decoder.pad_token_id())

    @torch.inference_mode()
    def generate(prompts: Tensor, length: int) -> Tensor:
        return model.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=length)

    return generate


def ours(decoder: Decoder, batch: int, length: int) -> Generate:
    """Greedy `Engine.generate`, its buffers for `batch` sequences of `length` tokens made once."""
    engine = Engine(decoder, max_batch=batch, max_len=length)
    return lambda prompts, new: engine.generate(prompts, max_new_tokens=new)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
