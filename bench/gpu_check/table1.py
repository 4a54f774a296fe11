"""Part: a decode step of every row of the paper's Table 1, in the middle of a generation, by replays.

Of each ratio all rows take turns, the original among them, so that every ratio of times is paired. Options:
`model` "7b" (default) or "13b" (Vicuna-13B's sizes, LLaMA-13B's own).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch

import pyprune
from bench.gpu_check import paper_rows
from bench.gpu_check.environment import gpu_report
from bench.gpu_check.paper_rows import Sizes
from bench.gpu_check.race import free, quiet
from bench.gpu_check.replays import decode_replay, interleaved_replays
from bench.gpu_check.settings import Save, Settings
from pyprune.models.decoder import Decoder
from pyprune.runtime import memory
from pyprune.study.measure import speedup
from pyprune.study.paper import facts

MODELS = {"7b": "llama-7b", "13b": "vicuna-13b"}
BATCHES, PROMPT, NEW, ROUNDS, REPLAYS = (1, 16), 12, 128, 9, 10
DRY_BATCHES, DRY_NEW, DRY_ROUNDS, DRY_REPLAYS = (1, 2), 4, 2, 1
SECONDS = {"7b": 50, "13b": 75}
"""Expected on an H200, the start of the process and 2 s a row and batch to compile and record included."""

NOTES = [
    "random weights: speeds only",
    "flap: ragged widths and heads, drawn with a fixed seed from the table's means and deviations",
    "llm-pruner: the first four and last two blocks whole, which gives the paper's parameter counts",
]
SHARE_OF_MEMORY = 0.85


def model_name(options: dict[str, Any]) -> str:
    """The paper's name of the model that the options ask for."""
    return MODELS[options.get("model", "7b")]


def load(settings: Settings, name: str) -> Decoder:
    """The unpruned model with random weights in bf16; tiny in a dry run."""
    spec = paper_rows.DRY_SPEC if settings.dry_run else f"shape:{name}"
    return pyprune.load(spec, dtype=torch.bfloat16, device=torch.device(settings.device))


def run(settings: Settings, save: Save) -> dict[str, Any]:
    """Raw seconds of a step of every row at each batch, and the paired speed-up over the original of the same rounds.

    First the smallest ratio at batch 1, then at 16, then the other ratios; last the rows with widths of multiples of
    64. The cache holds random values up to the middle of a generation of 12 and 128 tokens.
    """
    quiet()
    name, dry, device = model_name(settings.options), settings.dry_run, torch.device(settings.device)
    began = time.perf_counter()
    original = load(settings, name)
    batches, new = (DRY_BATCHES, DRY_NEW) if dry else (BATCHES, NEW)
    result: dict[str, Any] = {
        "what": "table1", "gpu": gpu_report(), "device": paper_rows.name_of_device(device), "model": name,
        "dtype": "bfloat16", "prompt_tokens": PROMPT, "new_tokens": new, "position": PROMPT + new // 2,
        "bandwidth": settings.bandwidth, "notes": NOTES, "rows": [], "timings": [], "errors": {},
    }  # fmt: skip
    for group in groups(name, original):
        for fitting_rows in fitting(group, original, device):
            _time(result, fitting_rows, original, settings, batches, save)
    result["measuring_seconds"] = time.perf_counter() - began
    return result


def groups(name: str, original: Decoder) -> Iterator[list[Sizes]]:
    """The rows that are timed together: of each ratio, as the paper has them; then of each, rounded up to 64."""
    packed = {
        ratio: [paper_rows.sizes(name, method, ratio, original) for method in facts.METHODS]
        for ratio in facts.ratios(name)
    }
    for rows in packed.values():
        yield [layout for row in rows for layout in paper_rows.layouts(row)]
    for rows in packed.values():
        yield [paper_rows.rounded(row) for row in rows if len(paper_rows.layouts(row)) > 1]


def fitting(group: list[Sizes], original: Decoder, device: torch.device) -> Iterator[list[Sizes]]:
    """The group in as few parts as there is memory for; a row too large for any is tried alone."""
    free_bytes = memory.available(device)
    limit = None if free_bytes is None else SHARE_OF_MEMORY * free_bytes
    part: list[Sizes] = []
    used_bytes = 0
    for row in group:
        needed = paper_rows.own_bytes(row, original, max(BATCHES) * (PROMPT + NEW))
        if part and limit is not None and used_bytes + needed > limit:
            yield part
            part, used_bytes = [], 0
        part.append(row)
        used_bytes += needed
    if part:
        yield part


def _time(
    result: dict[str, Any],
    rows: list[Sizes],
    original: Decoder,
    settings: Settings,
    batches: tuple[int, ...],
    save: Save,
) -> None:
    """Time the rows beside the original, at one batch after the other, and add what was found to the result."""
    device, dry = torch.device(settings.device), settings.dry_run
    original_row = paper_rows.sizes(result["model"], facts.ORIGINAL, None, original)
    models = {row: paper_rows.model_of(row, original) for row in (original_row, *rows)}
    row_names = {row["name"] for row in result["rows"]}
    result["rows"] += [paper_rows.described(r, model) for r, model in models.items() if r.name not in row_names]
    generator = torch.Generator().manual_seed(settings.seed)
    for batch in batches:
        prompts = torch.randint(0, original.vocab_size, (batch, PROMPT), generator=generator).to(device)
        steps = {}
        for row, model in models.items():
            try:
                engine = pyprune.Engine(model, max_batch=batch, max_len=PROMPT + result["new_tokens"])
                steps[row.name] = decode_replay(engine, prompts, result["position"])
            except Exception as error:  # every kind: the text is the finding, and the other rows go on
                result["errors"][f"{row.name}, batch {batch}"] = f"{type(error).__name__}: {error}"[:1500]
        rounds, replays = (DRY_ROUNDS, DRY_REPLAYS) if dry else (ROUNDS, REPLAYS)
        seconds = interleaved_replays(steps, device, rounds, replays)
        for row in models:
            if row.name in seconds:
                result["timings"].append(_line(row, batch, seconds, original_row))
        save(result)
        del steps
        free(device)


def _line(row: Sizes, batch: int, seconds: dict[str, list[float]], original_row: Sizes) -> dict[str, Any]:
    samples, reference = seconds[row.name], seconds.get(original_row.name)
    line = {"row": row.name, "engine": "pyprune", "batch": batch, "step_seconds": samples}
    line |= {"median_step_seconds": statistics.median(samples), "beside": sorted(seconds)}
    if reference is not None:
        line["original_step_seconds"] = reference
        line["speedup"] = speedup(reference, samples)
    return line


def warm(settings: Settings) -> str:
    """Run a step of every row once, on two blocks of the same sizes: the kernels compile and are kept."""
    name, device = model_name(settings.options), torch.device(settings.device)
    spec = paper_rows.DRY_SPEC if settings.dry_run else f"shape:{name},blocks=2"
    original = pyprune.load(spec, dtype=torch.bfloat16, device=device)
    rows = [row for group in groups(name, original) for row in group]
    batches, new = (DRY_BATCHES, DRY_NEW) if settings.dry_run else (BATCHES, NEW)
    for row in rows[:: 7 if settings.dry_run else 1]:
        model = paper_rows.model_of(row, original)
        for batch in batches:
            engine = pyprune.Engine(model, max_batch=batch, max_len=PROMPT + new)
            prompts = torch.ones(batch, PROMPT, dtype=torch.int64, device=device)
            decode_replay(engine, prompts, PROMPT + new // 2)()
    return f"{name}: {len(rows)} rows, batches {batches}"
