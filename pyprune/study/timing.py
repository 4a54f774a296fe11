"""Timing the rows of a comparison under Hugging Face transformers and under pyprune, all interleaved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyprune.models.decoder import Decoder
from pyprune.models.transformers_model import to_transformers
from pyprune.runtime import Engine
from pyprune.runtime.no_collection import no_collection
from pyprune.study.device import synchroniser
from pyprune.study.measure import interleave
from pyprune.study.progress import Progress, silent
from pyprune.study.protocols import Protocol
from pyprune.study.room import Room, Shortage
from pyprune.study.rows import Row
from pyprune.study.unfinished import Kept, Unfinished

HF, OURS = "hf", "pyprune"

Generate = Callable[[Tensor, int], object]
"""Prompts `[batch, tokens]` and the number of new tokens for each."""


def time_rows(
    rows: Sequence[Row],
    prompts: Tensor,
    batches: Sequence[int],
    protocol: Protocol,
    progress: Progress = silent,
    kept: Kept | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Raw seconds of each row under each engine, for each batch and output length, all interleaved round by round; and
    what did not fit into memory, with the planner's figures.

    The prompts are moved to the rows' device; both engines get them there. What `kept` holds is not timed again: a
    batch and an output length is finished, or begins anew, because its rows are compared round by round.
    """
    kept = Unfinished.nowhere() if kept is None else kept
    theirs: dict[str, Generate] = {}
    prompts = prompts.to(rows[0].decoder.device)
    settings = [(batch, length) for batch in batches for length in protocol.output_tokens]
    timings: list[dict[str, Any]] = []
    shortages: list[dict[str, Any]] = []
    for turn, (batch, length) in enumerate(settings):
        stage = f"timing {turn + 1} of {len(settings)}, batch {batch}, {length} tokens"
        part = kept.part(
            f"timings, batch {batch}, {length} tokens",
            partial(_time_setting, rows, theirs, prompts[:batch], length, protocol, partial(progress, stage)),
        )
        timings += part["timings"]
        shortages += part["oom"]
    return timings, shortages


def _time_setting(
    rows: Sequence[Row],
    theirs: dict[str, Generate],
    prompts: Tensor,
    length: int,
    protocol: Protocol,
    done: Callable[[int, int], None],
) -> dict[str, list[dict[str, Any]]]:
    """One batch and output length. `theirs`: Hugging Face's models by row, made when first needed."""
    device, batch = rows[0].decoder.device, len(prompts)
    longest = protocol.input_tokens + length
    room, short = Room(device, batch, longest), dict[tuple[str, str], Shortage]()
    engines: dict[tuple[str, str], Generate] = {}
    # Our engines keep their caches. Hugging Face's is made anew for every call, and no two calls run at the same time.
    for engine in (OURS, HF):
        for row in rows:
            shortage = row.shortage or room.admit(row.decoder, keeps_cache=engine == OURS)
            if shortage is None:
                if engine == OURS:
                    generate = ours(row.decoder, batch, longest)
                else:
                    generate = theirs[row.name] = theirs.get(row.name) or hugging_face(row.decoder)
                engines[row.name, engine] = generate
                shortage = _out_of_memory(room, row.decoder, generate, prompts, length)
            if shortage is not None:
                engines.pop((row.name, engine), None)
                short[row.name, engine] = shortage
    runnables = {key: partial(engines[key], prompts, length) for key in _in_order(rows) if key in engines}
    # A collection in the middle of a run would be charged to whoever happens to allocate then.
    with no_collection():
        samples = interleave(runnables, protocol.runs, protocol.warmups, done=done, synchronise=synchroniser(device))

    def setting(name: str, engine: str) -> dict[str, Any]:
        return {"row": name, "engine": engine, "batch": batch, "output_tokens": length}

    return {
        "timings": [{**setting(*key), "seconds": seconds} for key, seconds in samples.items()],
        "oom": [{**setting(*key), **short[key].to_json()} for key in _in_order(rows) if key in short],
    }


def _in_order(rows: Sequence[Row]) -> list[tuple[str, str]]:
    return [(row.name, engine) for row in rows for engine in (HF, OURS)]


def _out_of_memory(room: Room, decoder: Decoder, generate: Generate, prompts: Tensor, length: int) -> Shortage | None:
    """Run once on a GPU, whose workspace is planned by an estimate: what is short there, if anything is."""
    if prompts.device.type != "cuda":
        return None
    try:
        generate(prompts, length)
    except torch.OutOfMemoryError:
        return room.shortage(decoder)
    return None


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
