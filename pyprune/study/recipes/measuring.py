"""What a recipe measures of its models: quality of each by itself, speed of all of them side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from pyprune.evaluation.perplexity import window_losses
from pyprune.evaluation.tasks import Tasks, evaluate_tasks
from pyprune.evaluation.windows import TextWindows
from pyprune.models.decoder import Decoder
from pyprune.models.sizes import describe_sizes
from pyprune.runtime.footprint import weight_bytes
from pyprune.runtime.planner import plan_memory
from pyprune.study import machine
from pyprune.study.evaluations.accuracy import mean_accuracy, metric_of
from pyprune.study.measure import median_interval, speedup, spread
from pyprune.study.progress import Progress
from pyprune.study.recipes.budget import Budget
from pyprune.study.recipes.recipe import Memory, Speed
from pyprune.study.recipes.store import Store
from pyprune.study.rows import Row
from pyprune.study.samples import samples
from pyprune.study.timing import HF, OURS, time_rows

Values = dict[str, Any]
"""Name of a value (`values.known_value`) -> number."""
Intervals = dict[str, tuple[float, float] | None]


def sizes_of(decoder: Decoder, original: Decoder) -> Values:
    """What is known without measuring."""
    return {**describe_sizes(decoder, original.parameters()), "bytes": weight_bytes(decoder)}


def perplexity_of(decoder: Decoder, windows: TextWindows, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """`{"value", "stderr", "nll", "tokens"}`: the perplexity, None where it is not finite, and each window's summed
    loss and tokens, by which two models are compared on the same windows."""
    losses = window_losses(decoder, windows.input_ids, windows.targets, distributed=False, progress=progress)
    value = losses.perplexity
    finite = math.isfinite(value)
    return {
        "value": value if finite else None,
        "stderr": losses.stderr,
        "nll": losses.nll.tolist() if finite else None,
        "tokens": losses.tokens.tolist(),
    }


def accuracies_of(decoder: Decoder, tasks: Tasks, progress: Progress) -> dict[str, Any]:
    """What lm-eval says of each task."""
    return evaluate_tasks(decoder, decoder.tokenizer(), tasks, progress=progress)


def accuracy_values(results: dict[str, Any]) -> tuple[Values, Values]:
    """The paper's metric of each task and the mean over them, and their standard errors."""
    values = {name: task[metric_of(name)] for name, task in results.items()}
    errors = {name: task[f"{metric_of(name)}_stderr"] for name, task in results.items()}
    mean = mean_accuracy(results)
    if mean is not None:
        values["accuracy"], errors["accuracy"] = mean
    return values, errors


def texts_of(decoder: Decoder, budget: Budget, progress: Progress) -> dict[str, Any]:
    """What the model writes on the paper's prompts: an entry of `Samples.models`, and how it was drawn."""
    written = samples(
        decoder, draws=budget.draws, max_new_tokens=budget.new_tokens, seed=budget.seed, progress=progress
    )
    return {"settings": written.settings, "model": written.models[0]}


def memory_of(decoder: Decoder, memory: Memory, device: str) -> Values:
    """Planned bytes (weights, cache and workspace) on that kind of device, for each length and batch."""
    values = {}
    for length in memory.output_tokens:
        for batch in memory.batches:
            plan = plan_memory(decoder, batch, memory.input_tokens + length, device=device)
            values[f"memory:{length}x{batch}"] = plan.total
    return values


class _Kept:
    """What `time_rows` keeps its finished settings in."""

    def __init__(self, store: Store, content: dict[str, Any]) -> None:
        self._store, self._content = store, content

    def part(self, name: str, make: Callable[[], Any]) -> Any:
        return self._store.part("timings", {**self._content, "setting": name}, make)


def timings_of(
    rows: Sequence[Row],
    contents: Sequence[Any],
    prompts: torch.Tensor,
    speed: Speed,
    budget: Budget,
    store: Store,
    progress: Progress,
) -> list[dict[str, Any]]:
    """For each number of input tokens `{"protocol", "timings", "oom"}`, the rows under both engines, interleaved.

    contents: what the rows' models depend on. prompts: `[batch, tokens]` for the largest of both.
    """
    batches = speed.batches or budget.batches
    measured = []
    for tokens in speed.input_tokens:
        protocol = budget.protocol(tokens, speed.output_tokens)
        content = {
            "models": list(contents),
            "protocol": {key: value for key, value in protocol.to_json().items() if not key.startswith("evaluation")},
            "dtype": budget.dtype,
            "machine": machine.lasting(machine.describe()),
        }
        timings, shortages = time_rows(rows, prompts[:, :tokens], batches, protocol, progress, _Kept(store, content))
        measured.append(
            {"protocol": protocol.to_json(), "batches": list(batches), "timings": timings, "oom": shortages}
        )
    return measured


def speed_values(
    timings: Sequence[dict[str, Any]], name: str, original: str, batch: int, length: int
) -> tuple[Values, Intervals]:
    """A row's median latency, throughput and speed-up over the original, under each engine; and the 95 % intervals of
    the medians, where there are runs enough."""
    values: Values = {}
    intervals: Intervals = {}
    for engine, prefix in ((OURS, ""), (HF, "hf_")):
        seconds = {
            timing["row"]: timing["seconds"]
            for timing in timings
            if (timing["engine"], timing["batch"], timing["output_tokens"]) == (engine, batch, length)
        }
        if name not in seconds:
            continue
        median, around = spread(seconds[name])["median"], median_interval(seconds[name])
        tokens = batch * length
        values |= {f"{prefix}latency_s": median, f"{prefix}tokens_per_s": tokens / median}
        intervals[f"{prefix}latency_s"] = around
        intervals[f"{prefix}tokens_per_s"] = None if around is None else (tokens / around[1], tokens / around[0])
        if original in seconds:
            gain = speedup(seconds[original], seconds[name])
            values[f"{prefix}speedup"] = gain["median"]
            low, high = gain["low"], gain["high"]
            intervals[f"{prefix}speedup"] = None if low is None or high is None else (low, high)
    return values, intervals
