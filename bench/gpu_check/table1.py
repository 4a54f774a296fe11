"""Part: the speeds of all of the paper's Table 1 rows of LLaMA-7B, built directly as shapes.

Weights are random and the narrow models are slices of the original, so quality means nothing and is not measured.
Here every block of a row has the sizes that the table gives. In the paper FLAP's rows are ragged (these are means; the
standard deviation over the blocks is 2078 to 2441 neurons), and LLM-Pruner's parameter counts are those of a model that
keeps 6 of its blocks whole. The result says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

import pyprune
from bench.gpu_check.environment import gpu_report
from bench.gpu_check.race import free, quiet, race
from bench.gpu_check.settings import Save, Settings
from pyprune.models.decoder import FFN, MHA, Decoder, Linear
from pyprune.pruning import Pruning
from pyprune.runtime import memory
from pyprune.study.compare import Generate, Row, describe, hugging_face, ours
from pyprune.study.measure import speedup, spread
from pyprune.study.protocols import PROTOCOLS, Protocol

SPEC, BATCHES = "shape:llama-7b", (1, 16)
DRY_SPEC, DRY_BATCHES = "shape:hidden=64,blocks=4,heads=8,kv_heads=8,head_dim=8,ffn=172,vocab=257", (1, 2)
DRY_PROTOCOL = Protocol("dry", input_tokens=4, output_tokens=(2,), warmups=1, runs=1, evaluation_tokens=8)
NOTES = [
    "random weights: speeds only",
    "flap: the table's mean width and heads in every block; the paper's model is ragged",
    "llm-pruner: the table's width and heads in every block; the paper's parameter count has 6 of 32 blocks whole",
]
PAD = 64
SHARE_OF_MEMORY = 0.8


@dataclass(frozen=True)
class Sizes:
    """One row of Table 1: blocks kept, heads and FFN width of each."""

    ratio: str
    method: str
    blocks: int
    heads: int
    width: int


PAPER = [
    *(Sizes(ratio, "depth", blocks, 32, 11008) for ratio, blocks in (("20%", 26), ("27%", 23), ("35%", 21))),
    Sizes("20%", "wanda-sp", 32, 26, 8807),
    Sizes("27%", "wanda-sp", 32, 23, 7816),
    Sizes("35%", "wanda-sp", 32, 21, 7156),
    Sizes("20%", "llm-pruner", 32, 24, 8256),
    Sizes("27%", "llm-pruner", 32, 21, 7155),
    Sizes("35%", "llm-pruner", 32, 18, 6054),
    Sizes("20%", "flap", 32, 27, 8577),
    Sizes("27%", "flap", 32, 25, 7497),
    Sizes("35%", "flap", 32, 23, 6781),
]
BLOCKS, HEADS, WIDTH = 32, 32, 11008
"""The original's sizes."""


def run(settings: Settings, save: Save) -> dict[str, Any]:
    """Latency of every row under both engines, in groups that fit into memory, each with the original beside it."""
    quiet()
    dry, device = settings.dry_run, torch.device(settings.device)
    spec, batches, protocol = (DRY_SPEC, DRY_BATCHES, DRY_PROTOCOL) if dry else (SPEC, BATCHES, PROTOCOLS["quick"])
    original = pyprune.load(spec, dtype=torch.bfloat16, device=device)
    sizes = [scaled(one, original) for one in with_padded(PAPER)]
    result: dict[str, Any] = {
        "gpu": gpu_report(), "model": spec, "dtype": "bfloat16", "protocol": protocol.to_json(),
        "notes": NOTES,
        "rows": [], "timings": [], "errors": {},
    }  # fmt: skip
    generator = torch.Generator().manual_seed(settings.seed)
    free_bytes = memory.available(device)
    limit = None if free_bytes is None else int(SHARE_OF_MEMORY * free_bytes)
    prompts = {
        batch: torch.randint(0, original.vocab_size, (batch, protocol.input_tokens), generator=generator).to(device)
        for batch in batches
    }
    groups = grouped(sizes, original, limit)
    # All rows at the first batch before any at the next: a run that is stopped has whole tables.
    for batch, (number, group) in product(batches, enumerate(groups)):
        rows = [row_of(None, original), *(row_of(one, original) for one in group)]
        if batch == batches[0]:
            result["rows"] += [sizes_of(row, original) for row in (rows[1:] if number else rows)]
        engines = engines_of(rows, batch, protocol.input_tokens + protocol.output_tokens[0])
        del rows
        _time(result, engines, prompts[batch], protocol, number)
        save(result)
        del engines
        free(device)
    return result


def engines_of(rows: Sequence[Row], batch: int, length: int) -> dict[tuple[str, str], Generate]:
    """Both engines of every row, made once for all batches."""
    found: dict[tuple[str, str], Generate] = {}
    for row in rows:
        found[row.name, "hf"] = hugging_face(row.decoder)
        found[row.name, "pyprune"] = ours(row.decoder, batch, length)
    return found


def with_padded(sizes: Sequence[Sizes]) -> list[Sizes]:
    """The rows by ratio, each that is not aligned followed by itself padded to 64."""
    found = []
    for one in sorted(sizes, key=lambda size: size.ratio):
        found.append(one)
        if one.width % PAD:
            found.append(replace(one, method=f"{one.method} padded", width=-(-one.width // PAD) * PAD))
    return found


def scaled(sizes: Sizes, original: Decoder) -> Sizes:
    """The row's sizes for another model than LLaMA-7B (a dry run's); the same for LLaMA-7B itself."""
    blocks, mha, ffn = len(original.blocks), original.blocks[0].mha, original.blocks[0].ffn
    assert mha is not None
    assert ffn is not None
    return replace(
        sizes,
        blocks=max(1, sizes.blocks * blocks // BLOCKS),
        heads=max(1, sizes.heads * mha.heads // HEADS),
        width=max(1, sizes.width * ffn.width // WIDTH),
    )


def grouped(sizes: Sequence[Sizes], original: Decoder, limit: int | None) -> list[list[Sizes]]:
    """The rows in order, in groups of one ratio that take at most `limit` bytes each beside the original."""
    groups: list[list[Sizes]] = []
    taken = 0
    for one in sizes:
        needed = own_bytes(one, original)
        full = limit is not None and taken + needed > limit
        if not groups or groups[-1][0].ratio != one.ratio or full:
            groups.append([])
            taken = 0
        groups[-1].append(one)
        taken += needed
    return groups


def own_bytes(sizes: Sizes, original: Decoder) -> int:
    """Bytes that the row does not share with the original: o and down of a narrow model, and some for its caches."""
    head_dim = original.blocks[0].mha.head_dim
    caches = 1 << 28 if original.device.type == "cuda" else 1 << 16
    if sizes.blocks < len(original.blocks):
        return caches
    return caches + sizes.blocks * original.hidden_size * (sizes.heads * head_dim + sizes.width) * 2


def row_of(sizes: Sizes | None, original: Decoder) -> Row:
    """The row's model; None for the original."""
    if sizes is None:
        return Row("original", "original", None, original, None)
    if sizes.blocks < len(original.blocks):
        gone = list(range(sizes.blocks, len(original.blocks)))
        decoder = pyprune.apply(original, Pruning(blocks=gone))
    else:
        decoder = narrowed(original, sizes.heads, sizes.width)
    return Row(f"{sizes.method} {sizes.ratio}", sizes.method, sizes.ratio, decoder, None)


def narrowed(original: Decoder, heads: int, width: int) -> Decoder:
    """The first `heads` heads and `width` neurons of every block: rows are shared with the original, o and down are
    copied into the narrow layout that a pruned checkpoint has."""

    def narrow_mha(part: MHA) -> MHA:
        size = heads * part.head_dim
        q, k, v = (Linear(one.weight[:size]) for one in (part.q, part.k, part.v))
        return replace(part, q=q, k=k, v=v, o=Linear(part.o.weight[:, :size].contiguous()), heads=heads, kv_heads=heads)

    def narrow_ffn(part: FFN) -> FFN:
        gate, up = Linear(part.gate.weight[:width]), Linear(part.up.weight[:width])
        return replace(part, gate=gate, up=up, down=Linear(part.down.weight[:, :width].contiguous()))

    blocks = tuple(replace(one, mha=narrow_mha(one.mha), ffn=narrow_ffn(one.ffn)) for one in original.blocks)
    return replace(original, blocks=blocks)


def sizes_of(row: Row, original: Decoder) -> dict[str, Any]:
    """The row's sizes as JSON data, without a quality."""
    told = describe(row, original.parameters(), float("nan"))
    return {name: value for name, value in told.items() if name not in ("ppl", "pruning")}


def _time(
    result: dict[str, Any],
    engines: Mapping[tuple[str, str], Generate],
    prompts: Tensor,
    protocol: Protocol,
    group: int,
) -> None:
    batch, length = len(prompts), protocol.output_tokens[0]
    contestants = {key: partial(generate, prompts, length) for key, generate in engines.items()}
    samples, errors = race(contestants, prompts.device, protocol.runs)
    result["errors"].update({f"{name}, {engine}, batch {batch}": text for (name, engine), text in errors.items()})
    for (name, engine), seconds in samples.items():
        line: dict[str, Any] = {
            "row": name, "engine": engine, "batch": batch, "output_tokens": length, "group": group, "seconds": seconds,
            "latency_s": spread(seconds)["median"],
        }  # fmt: skip
        if ("original", engine) in samples:
            line["speedup"] = speedup(samples["original", engine], seconds)["median"]
        if engine == "pyprune" and (name, "hf") in samples:
            line["pyprune_vs_hf"] = speedup(samples[name, "hf"], seconds)["median"]
        result["timings"].append(line)
