"""Part: whole generations of 12 tokens in and 128 out, ours and Hugging Face's, and the memory that they take.

The paper's protocol (section 4: latency T from a batch of M prompts to M x L new tokens, throughput M x L / T) at batch
1, for the original and the rows of the smallest ratio; one round of whole generations, where the paper takes 20, and
then rounds of short ones, which tell the ratios of the rows. Then Table 9: the peak of the device's memory for the
original and the depth rows. Options: `model` as in `table1`, `seconds` for the timing.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import pyprune
from bench.gpu_check import paper_rows
from bench.gpu_check.environment import gpu_report
from bench.gpu_check.paper_rows import Sizes
from bench.gpu_check.race import fit, free, quiet
from bench.gpu_check.settings import Save, Settings
from bench.gpu_check.table1 import DRY_NEW, NEW, PROMPT, load, model_name
from pyprune.models.decoder import Decoder
from pyprune.models.transformers_model import to_transformers
from pyprune.runtime.huggingface.layers import CACHE
from pyprune.study.device import synchroniser
from pyprune.study.measure import speedup
from pyprune.study.paper import facts
from pyprune.study.timing import hugging_face, ours

MOST_ROUNDS, LEAST_ROUNDS, SHORT, TIMING_SECONDS = 20, 6, 8, 30.0
DRY_SHORT = 2
"""Rounds and new tokens of the short generations; with fewer than 6 there is no interval."""

MEMORY_BATCHES, MEMORY_TOKENS = (1, 16, 64), (128, 512)
DRY_MEMORY = ((2,), (4,))
SECONDS = {"7b": 55, "13b": 70}
"""Expected on an H200: a start of 10 s, first runs 8 s, TIMING_SECONDS or more, memory 5 s."""

NOTES = [
    "Hugging Face: sdpa attention, not compiled, its default cache, greedy",
    "memory: the allocator's peak above the weights, and the weights as a checkpoint has them; without the context and "
    "the workspaces of CUDA's libraries. Hugging Face's is that of the last step, with a cache of all tokens before",
]


def run(settings: Settings, save: Save) -> dict[str, Any]:
    """Raw seconds of every whole generation, round by round, and bytes of memory (None on a CPU)."""
    quiet()
    name, device = model_name(settings.options), torch.device(settings.device)
    original, new = load(settings, name), DRY_NEW if settings.dry_run else NEW
    rows = timed_rows(name, original)
    result: dict[str, Any] = {
        "what": "generations", "gpu": gpu_report(), "device": paper_rows.name_of_device(device), "model": name,
        "dtype": "bfloat16", "prompt_tokens": PROMPT, "new_tokens": new, "batch": 1, "bandwidth": settings.bandwidth,
        "notes": NOTES, "rows": [], "timings": [], "memory": [], "errors": {},
    }  # fmt: skip
    models = {row.name: paper_rows.model_of(row, original) for row in rows}
    result["rows"] = [paper_rows.described(row, models[row.name]) for row in rows]
    generator = torch.Generator().manual_seed(settings.seed)
    prompt = torch.randint(0, original.vocab_size, (1, PROMPT), generator=generator).to(device)
    _generations(result, models, prompt, new, settings, save)
    del models
    free(device)
    _memories(result, name, original, settings, save)
    return result


def timed_rows(name: str, original: Decoder) -> list[Sizes]:
    """The original and the rows of the smallest ratio, packed as a pruned checkpoint is."""
    smallest_ratio = facts.ratios(name)[0]
    return [
        paper_rows.sizes(name, facts.ORIGINAL, None, original),
        *(paper_rows.sizes(name, method, smallest_ratio, original) for method in facts.METHODS),
    ]


def _generations(
    result: dict[str, Any],
    models: dict[str, Decoder],
    prompt: torch.Tensor,
    new: int,
    settings: Settings,
    save: Save,
) -> None:
    device = prompt.device
    engines = {"pyprune": lambda model: ours(model, 1, PROMPT + new), "hf": hugging_face}
    generators = {(row, name): make(model) for row, model in models.items() for name, make in engines.items()}
    # The peer's first run is short: nothing of it is compiled, and a whole one takes seconds.
    first_runs = {
        key: partial(generate, prompt, new if key[1] == "pyprune" else 4) for key, generate in generators.items()
    }
    ready, errors = fit(first_runs, device)
    result["errors"] |= {f"{row}, {engine}": text for (row, engine), text in errors.items()}
    budget = settings.options.get("seconds", 1.0 if settings.dry_run else TIMING_SECONDS)
    min_rounds, max_rounds, short = (1, 2, DRY_SHORT) if settings.dry_run else (LEAST_ROUNDS, MOST_ROUNDS, SHORT)
    began = time.perf_counter()
    for tokens, fewest, rounds in ((new, 1, 1), (short, min_rounds, max_rounds)):
        runs = {key: partial(generators[key], prompt, tokens) for key in ready}
        seconds: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
        before = list(result["timings"])

        def keep(tokens: int = tokens, seconds: Any = seconds, before: Any = before) -> None:
            lines = [_line(key, seconds, tokens) for key, samples in seconds.items() if samples]
            result["timings"] = [*before, *lines]
            save(result)

        left = budget - (time.perf_counter() - began)
        rounds_within(runs, seconds, left, fewest, rounds, device, keep)


def rounds_within(
    runs: dict[Any, Callable[[], object]],
    seconds: dict[Any, list[float]],
    budget: float,
    min_rounds: int,
    max_rounds: int,
    device: torch.device,
    keep: Callable[[], None],
) -> None:
    """Time every run once a round, in shuffled order, until the next round would pass the budget."""
    synchronise = synchroniser(device) or (lambda: None)
    names, shuffle, began, longest = list(runs), random.Random(0).shuffle, time.perf_counter(), 0.0
    for turn in range(max_rounds):
        start = time.perf_counter()
        if turn >= min_rounds and start - began + longest > budget:
            return
        if turn:  # the first in the order of importance: a part that is stopped has the first rows
            shuffle(names)
        for name in names:
            synchronise()
            before = time.perf_counter()
            runs[name]()
            synchronise()
            seconds[name].append(time.perf_counter() - before)
        keep()
        longest = max(longest, time.perf_counter() - start)


def _line(key: tuple[str, str], seconds: dict[tuple[str, str], list[float]], tokens: int) -> dict[str, Any]:
    (row, engine), samples = key, seconds[key]
    line: dict[str, Any] = {"row": row, "engine": engine, "batch": 1, "new_tokens": tokens, "seconds": list(samples)}
    line["latency_s"] = statistics.median(samples)
    for name, baseline in (("speedup", (facts.ORIGINAL, engine)), ("over_hf", (row, "hf"))):
        pairs = min(len(samples), len(seconds.get(baseline, [])))
        if pairs and not (name == "over_hf" and engine == "hf"):
            line[name] = speedup(seconds[baseline][:pairs], samples[:pairs])
    return line


# --- Table 9 ------------------------------------------------------------------------------------------------------


def _memories(result: dict[str, Any], name: str, original: Decoder, settings: Settings, save: Save) -> None:
    batches, lengths = DRY_MEMORY if settings.dry_run else (MEMORY_BATCHES, MEMORY_TOKENS)
    rows = [(facts.ORIGINAL, None), *(("depth", ratio) for ratio in facts.ratios(name))]
    for method, ratio in rows:
        row = paper_rows.sizes(name, method, ratio, original)
        model = paper_rows.model_of(row, original)
        weights = model.parameters() * model.dtype.itemsize
        for length in lengths:
            for batch in batches:
                for engine, use in (("pyprune", _our_peak), ("hf", _their_peak)):
                    line = {"row": row.name, "method": method, "ratio": ratio, "engine": engine, "batch": batch}
                    line |= {"prompt_tokens": PROMPT, "new_tokens": length, "weights_bytes": weights}
                    try:
                        added = use(model, batch, PROMPT + length)
                        line["peak_bytes"] = None if added is None else weights + added
                    except Exception as error:  # out of memory among them: a finding like any other
                        line["error"] = f"{type(error).__name__}: {error}"[:300]
                    free(original.device)
                    result["memory"].append(line)
        save(result)


@torch.inference_mode()
def _our_peak(model: Decoder, batch: int, length: int) -> int | None:
    """Bytes that the engine adds for `batch` sequences of `length` tokens: its caches are as long from the start."""
    measured = _Peak(model.device)
    engine = pyprune.Engine(model, max_batch=batch, max_len=length)
    engine.prefill(torch.ones(batch, PROMPT, dtype=torch.int64, device=model.device))
    engine.decode(torch.ones(batch, dtype=torch.int64, device=model.device))
    return measured.added()


@torch.inference_mode()
def _their_peak(model: Decoder, batch: int, length: int) -> int | None:
    """Bytes that Hugging Face's last step adds: its cache of all tokens before, made here at once, and what it needs to
    make each block's one token longer."""
    from transformers import DynamicCache

    peer = to_transformers(model, attn_implementation="sdpa")
    measured = _Peak(model.device)
    cache = DynamicCache(config=peer.config)
    for place, block in enumerate(model.blocks):
        assert block.mha is not None
        shape = (batch, block.mha.kv_heads, length - 1, block.mha.head_dim)
        cache.update(*(torch.zeros(shape, dtype=model.dtype, device=model.device) for _ in range(2)), place)
    free(model.device)
    measured.forget()
    tokens = torch.ones(batch, 1, dtype=torch.int64, device=model.device)
    peer(tokens, **{CACHE: cache}, use_cache=True, logits_to_keep=1)
    return measured.added()


class _Peak:
    """The most memory that is allocated from now on, above what is allocated now; nothing on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            self.forget()
            self._before = torch.cuda.memory_allocated(device)

    def forget(self) -> None:
        """Count the peak anew."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def added(self) -> int | None:
        if self._device.type != "cuda":
            return None
        torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_allocated(self._device) - self._before
