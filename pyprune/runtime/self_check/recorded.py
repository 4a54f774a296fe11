"""A recorded decode step of a tiny random decoder against the reference in float64, without and with a mask."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pyprune import ops
from pyprune.models.decoder import Decoder
from pyprune.models.load import load
from pyprune.ops.self_check.judgement import blank, verdict
from pyprune.runtime.engine import Engine
from pyprune.runtime.skip import Skip

SPEC = "shape:hidden=64,blocks=4,heads=4,kv_heads=2,head_dim=16,ffn=171,vocab=307"
PROMPT, STEPS, ROWS = 7, 4, 150  # so many cache rows that attention is split
OFF = ((1, 0), (1, 1), (2, 1))
"""What the mask that is set leaves out: (block, 0 for attention and 1 for the FFN)."""

UNWRITTEN = 768.0
"""In every cache row before: a row that is read without having been written shows, and so does one written by mistake.
"""


def check_step(batch: int, dtype: torch.dtype, device: str, seed: int) -> dict[str, Any]:
    """The logits of `STEPS` recorded steps for `batch` sequences, as `judgement.check` reports an operator."""
    result = blank("recorded step", f"batch {batch}", dtype)
    try:
        result.update(_measure(batch, dtype, torch.device(device), seed))
    except Exception as error:  # every kind: the text is the finding
        result["exception"] = f"{type(error).__name__}: {error}"[:1500]
    return result


def _measure(batch: int, dtype: torch.dtype, device: torch.device, seed: int) -> dict[str, Any]:
    low = load(SPEC, torch.float32).to(dtype)
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, low.vocab_size, (batch, PROMPT + STEPS), generator=draw)
    clear = torch.zeros(len(low.blocks), 2, dtype=torch.bool)
    mask = clear.clone()
    mask[tuple(zip(*OFF, strict=True))] = True
    left_out = {"mha": [b for b, column in OFF if column == 0], "ffn": [b for b, column in OFF if column == 1]}
    moved = low.to(device=device)
    with _reference():
        exact = [_logits(_engine(low.to(torch.float64), batch, False), ids, skip) for skip in (None, None, left_out)]
        plain = [_logits(_engine(moved, batch, False), ids, skip) for skip in (None, None, left_out)]
    engine = _engine(moved, batch, device.type == "cuda")
    ours: list[Tensor] = []
    repeated: list[Tensor] = []
    for results in (ours, repeated):
        for skip in (None, clear, mask):
            results.append(_logits(engine, ids, None if skip is None else skip.to(device)))
            _check_caches(engine, mask if skip is mask else clear)
    if device.type == "cuda" and len(engine._graphs) != 2:  # all masks share one
        raise AssertionError(f"2 recordings are expected, not {len(engine._graphs)}")
    return verdict(ours, repeated, plain, exact)


def _engine(decoder: Decoder, batch: int, records: bool) -> Engine:
    """An engine whose step is of single operators, recorded or not."""
    engine = Engine(decoder, max_batch=batch, max_len=ROWS)
    engine._fused_steps = []
    if records and engine._record is None:
        raise AssertionError("the engine does not record its steps here")
    if not records:
        engine._record = None
    return engine


def _logits(engine: Engine, ids: Tensor, skip: Skip) -> Tensor:
    """Of each of the steps, after a prompt: `[STEPS, batch, vocabulary]`, on the CPU."""
    for pair in engine._caches:
        for cache in pair or ():
            cache.fill_(UNWRITTEN)
    ids = ids.to(engine.decoder.device)
    engine.prefill(ids[:, :PROMPT], skip=skip)
    return torch.stack([engine.decode(ids[:, PROMPT + step]).cpu() for step in range(STEPS)])


def _check_caches(engine: Engine, mask: Tensor) -> None:
    """AssertionError where anything but the rows of the tokens was written, or one of those was not."""
    for index, pair in enumerate(engine._caches):
        for cache in pair or ():
            kept = cache == UNWRITTEN
            rows = 0 if mask[index, 0] else PROMPT + STEPS
            if not kept[:, :, rows:].all():
                raise AssertionError(f"block {index}: a cache row was written that is no token's")
            if kept[:, :, :rows].all(-1).any():
                raise AssertionError(f"block {index}: a token's cache row was not written")


@contextlib.contextmanager
def _reference() -> Iterator[None]:
    """Within it, every operator is its reference implementation."""
    before = {name: getattr(ops, name) for name in ops.gpu.KERNELS}
    try:
        for name in before:
            setattr(ops, name, ops.reference.REFERENCE[name])
        yield
    finally:
        for name, operator in before.items():
            setattr(ops, name, operator)
