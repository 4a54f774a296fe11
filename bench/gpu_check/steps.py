"""Part: the engine's recorded steps, nothing left out, by the host and by device masks, against plain PyTorch's logits.

The reference is a whole forward in float64 of the same weights, without caches and without our operators
(`pyprune.runtime.differentiable`); plain PyTorch's own error is that of the same forward in the weights' dtype.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import pyprune
from bench.gpu_check.environment import gpu_report
from bench.gpu_check.settings import Save, Settings
from pyprune.models.decoder import Decoder
from pyprune.ops.reference import rms_norm
from pyprune.ops.self_check.judgement import TIMES_PYTORCH, count
from pyprune.runtime.differentiable import run_block
from pyprune.runtime.skip import Skip

SHAPES = {
    "odd heads, odd width": "hidden=256,blocks=3,heads=9,kv_heads=3,head_dim=64,ffn=715,vocab=1003",
    "26 heads, width 7155": "hidden=512,blocks=3,heads=26,kv_heads=26,head_dim=128,ffn=7155,vocab=1003",
}
DRY_SHAPES = {"odd heads, odd width": "hidden=64,blocks=3,heads=3,kv_heads=3,head_dim=16,ffn=171,vocab=257"}
BATCHES, PROMPT, STEPS = (1, 2, 4, 16), 9, 5
DRY_BATCHES = (1, 2, 4)
TINY = 1e-6
"""Share of the largest logit that is allowed beside twice PyTorch's error."""


def run(settings: Settings, save: Save) -> dict[str, Any]:
    """Every shape, batch and way of leaving out in the dtypes asked for; errors relative to the largest true logit."""
    shapes, batches = (DRY_SHAPES, DRY_BATCHES) if settings.dry_run else (SHAPES, BATCHES)
    dtypes = settings.options.get("dtypes", ["bfloat16", "float16"])
    result: dict[str, Any] = {"gpu": gpu_report(), "of": len(shapes) * len(dtypes) * len(batches) * len(ways(3, "cpu"))}
    result["cases"] = []
    for name, sizes in shapes.items():
        for dtype in dtypes:
            decoder = pyprune.load(f"shape:{sizes}", dtype=getattr(torch, dtype), device=settings.device)
            for batch in batches:
                save({**result, "trying": f"{name}, {dtype}, batch {batch}"})
                labels = {"shape": name, "dtype": dtype, "batch": batch}
                result["cases"] += [{**labels, **case} for case in compared(decoder, batch, settings)]
                result.update(count(result["cases"]))
    # The operators decide on their implementation when they first run.
    return {**result, "gpu": gpu_report()}


def ways(blocks: int, device: torch.device | str) -> dict[str, tuple[Skip, Tensor]]:
    """What is left out, as `skip` and as flags [blocks, 2]. All device masks share one recording; the last repeats the
    first set one, for which another has been in force meanwhile."""
    clear = torch.zeros(blocks, 2, dtype=torch.bool, device=device)
    block, sublayers = clear.clone(), clear.clone()
    block[1] = True
    sublayers[0, 0] = sublayers[-1, 1] = True
    return {
        "nothing": (None, clear),
        "a block, by the host": ([1], block),
        "a block, by a mask": (block, block),
        "a clear mask": (clear, clear),
        "two halves, by a mask": (sublayers, sublayers),
        "a block, by a mask again": (block, block),
    }


@torch.inference_mode()
def compared(decoder: Decoder, batch: int, settings: Settings) -> list[dict[str, Any]]:
    """Prompts of different lengths and STEPS decoded tokens under each way, one engine for all."""
    device, count_ = decoder.device, len(decoder.blocks)
    generator = torch.Generator().manual_seed(settings.seed)
    ids = torch.randint(0, decoder.vocab_size, (batch, PROMPT + STEPS), generator=generator).to(device)
    lengths = torch.tensor([PROMPT - row % 3 for row in range(batch)], device=device)
    # The rows of the reference that the engine gives: after the prompt, and after each token.
    places = lengths[:, None] - 1 + torch.arange(STEPS + 1, device=device)
    engine = pyprune.Engine(decoder, max_batch=batch, max_len=PROMPT + STEPS)
    cases, before = [], {}
    for name, (skip, flags) in ways(count_, device).items():
        case: dict[str, Any] = {"left_out": name, "passed": False, "error": None, "pytorch_error": None, "ratio": None}
        try:
            logits = generated(engine, ids, lengths, skip)
            true, plain = (
                at(plain_logits(decoder, ids, flags, dtype), places).double() for dtype in (torch.float64, None)
            )
            scale = true.abs().max()
            error, error_plain = (float((values.double() - true).abs().max() / scale) for values in (logits, plain))
            twin = before.get(name.removesuffix(" again"))
            before[name] = logits
            case.update(
                error=error,
                pytorch_error=error_plain,
                ratio=error / error_plain if error_plain else None,
                same_bits_twice=None if twin is None else torch.equal(logits, twin),
                recorded=bool(engine._graphs),
                exception=None,
            )
            unrecorded = not engine._graphs and engine._record is not None
            case["passed"] = (
                error <= TIMES_PYTORCH * error_plain + TINY and case["same_bits_twice"] is not False and not unrecorded
            )
        except Exception as problem:  # every kind: the text is the finding
            case["exception"] = f"{type(problem).__name__}: {problem}"[:1500]
        cases.append(case)
    return cases


def generated(engine: pyprune.Engine, ids: Tensor, lengths: Tensor, skip: Skip) -> Tensor:
    """The logits [B, 1 + STEPS, V] after each prompt ids[b, :lengths[b]] and after each of the tokens that follow."""
    prompt = ids[:, :PROMPT]
    seen = (torch.arange(PROMPT, device=ids.device) < lengths[:, None]).to(torch.int64)
    logits = [engine.prefill(prompt, attention_mask=seen, skip=skip)]
    for step in range(STEPS):
        tokens = ids.gather(1, lengths[:, None] + step)[:, 0]
        logits.append(engine.decode(tokens))
    return torch.stack(logits, dim=1)


def plain_logits(decoder: Decoder, ids: Tensor, left_out: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Logits [B, T, V] by plain PyTorch in `dtype` (None: the weights' own); left_out: bool [blocks, 2]."""
    wide = decoder if dtype is None else decoder.map(lambda tensor: tensor.to(dtype))
    cos, sin = wide.rope.tables(ids.shape[1])
    x = torch.nn.functional.embedding(ids, wide.embedding)
    for block, (no_mha, no_ffn) in zip(wide.blocks, left_out.tolist(), strict=True):
        kept = replace(block, mha=None if no_mha else block.mha, ffn=None if no_ffn else block.ffn)
        x = run_block(kept, x, cos, sin, wide.eps)
    return torch.nn.functional.linear(rms_norm(x, wide.norm, wide.eps), wide.head.weight, wide.head.bias)


def at(logits: Tensor, places: Tensor) -> Tensor:
    """Rows places [B, S] of logits [B, T, V]: [B, S, V]."""
    return logits.gather(1, places[:, :, None].expand(-1, -1, logits.shape[2]))
