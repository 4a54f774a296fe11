"""Made-up files of the GPU check: LLaMA-7B's rows with step times that a test chooses. None is measured."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from bench.gpu_check import paper_rows
from pyprune.study.paper import facts

HIDDEN, HEAD, VOCABULARY, POSITION = 4096, 128, 32000, 76
BANDWIDTH = 4.0e12
Seconds = Callable[[dict[str, Any], int], float]
"""A row as the part describes it, and the batch -> seconds of a step."""

ORIGINAL = SimpleNamespace(
    blocks=[SimpleNamespace(mha=SimpleNamespace(heads=32), ffn=SimpleNamespace(width=11008))] * 32
)


def row(method: str, ratio: str | None, layout: str = "packed") -> dict[str, Any]:
    sizes = paper_rows.sizes("llama-7b", method, ratio, ORIGINAL)
    sizes = paper_rows.rounded(sizes) if layout == "64" else sizes
    per_block = [4 * HIDDEN * HEAD * h + 3 * HIDDEN * w for h, w in zip(sizes.heads, sizes.widths, strict=True)]
    parameters = sum(per_block) + 2 * VOCABULARY * HIDDEN
    name = " ".join(filter(None, (method, ratio, "" if layout == "packed" else layout)))
    return {
        "name": name, "method": method, "ratio": ratio, "layout": layout, "parameters": parameters,
        "blocks": len(sizes.heads), "bytes_per_token": 2 * (parameters - VOCABULARY * HIDDEN),
        "kv_bytes_per_position": 4 * HEAD * sum(sizes.heads), "width_divisor": paper_rows.divisor(sizes.widths),
    }  # fmt: skip


def by_bytes(row: dict[str, Any], batch: int) -> float:
    """A step that takes what its bytes take, and 10 % more."""
    return 1.1 * (row["bytes_per_token"] + batch * POSITION * row["kv_bytes_per_position"]) / BANDWIDTH


def as_the_paper(row: dict[str, Any], batch: int) -> float:
    """Width slower than the original, depth faster: what the paper found."""
    return 5e-3 / (facts.speedup("llama-7b", row["ratio"], row["method"]) or 1.0)


def launch_bound(row: dict[str, Any], batch: int) -> float:
    """So much a block, whatever is in it."""
    return 0.7e-3 * row["blocks"]


def samples(seconds: float, count: int, seed: int) -> list[float]:
    noise = random.Random(seed)
    return [seconds * (1 + noise.uniform(-0.004, 0.004)) for _ in range(count)]


def part(name: str, result: dict[str, Any], status: str = "done", why: str | None = None) -> dict[str, Any]:
    return {"name": name, "group": name, "status": status, "why": why, "seconds": 1.0, "result": result}


def check(*parts: dict[str, Any], dry_run: bool = False) -> dict[str, Any]:
    return {"format": "pyprune-gpu-check/1", "dry_run": dry_run, "seed": 1, "parts": list(parts)}


def head(what: str, device: str, bandwidth: float | None = BANDWIDTH) -> dict[str, Any]:
    return {
        "what": what, "device": device, "model": "llama-7b", "prompt_tokens": 12, "new_tokens": 128,
        "position": POSITION, "bandwidth": bandwidth, "rows": [], "timings": [], "errors": {},
    }  # fmt: skip


def table1(
    seconds: Seconds,
    ratios: tuple[str, ...] = ("20%", "27%", "35%"),
    batches: tuple[int, ...] = (1, 16),
    device: str = "NVIDIA H100 80GB HBM3",
    runs: int = 9,
    padded: Seconds | None = None,
) -> dict[str, Any]:
    result = head("table1", device)
    original = row("original", None)
    result["rows"].append(original)
    for ratio in ratios:
        rows = [row(method, ratio) for method in facts.METHODS]
        rows += [row(m, ratio, "padded") for m in ("wanda-sp", "flap")] if padded else []
        result["rows"] += rows
        for batch in batches:
            whole = samples(seconds(original, batch), runs, batch)
            for place, one in enumerate([original, *rows]):
                timer = padded if one["layout"] == "padded" else seconds
                own = whole if place == 0 else samples(timer(one, batch), runs, 7 * place + batch)
                result["timings"].append(
                    {"row": one["name"], "engine": "pyprune", "batch": batch, "step_seconds": own,
                     "original_step_seconds": whole}
                )  # fmt: skip
    return result


def generations(
    hf: Seconds, ours: Seconds, device: str = "NVIDIA H100 80GB HBM3", runs: int = 6, memory: bool = True
) -> dict[str, Any]:
    result = head("generations", device) | {"memory": []}
    result["rows"] = [row("original", None), *(row(method, "20%") for method in facts.METHODS)]
    for place, one in enumerate(result["rows"]):
        for engine, seconds in (("hf", hf), ("pyprune", ours)):
            for new, count in ((128, 1), (8, runs)):
                taken = samples(new * seconds(one, 1) + 1e-4, count, 100 + place)
                line = {"row": one["name"], "engine": engine, "batch": 1, "new_tokens": new, "seconds": taken}
                result["timings"].append(line)
    if memory:
        for cell in facts.memories():
            if cell.model == "llama-7b":
                for engine, factor in (("hf", 1.01), ("pyprune", 0.98)):
                    result["memory"].append(
                        {"row": "", "method": "depth" if cell.ratio else "original", "ratio": cell.ratio,
                         "engine": engine, "batch": cell.batch, "new_tokens": cell.output_tokens,
                         "peak_bytes": int(factor * cell.gb * 2**30)}
                    )  # fmt: skip
    return result


def width_sweep(device: str = "NVIDIA H100 80GB HBM3", finished: bool = True) -> dict[str, Any]:
    """cuBLAS twice as slow at widths that are no multiples of 8, for both roles; ours as its bytes are."""
    points = []
    for width in range(7000, 7301, 4 if finished else 16):
        for odd in (width, width + 1, width + 2):
            for role in ("gate/up", "down"):
                for rows in (1, 16):
                    floor = 2 * odd * HIDDEN / BANDWIDTH
                    slow = 2.0 if odd % 8 else 1.0
                    seconds = {
                        "cuBLAS": samples(slow * floor, 5, odd),
                        "pyprune, packed": samples(1.02 * floor, 5, odd),
                    }
                    points.append({"role": role, "width": odd, "rows": rows, "seconds": seconds})
    return {
        "what": "width-sweep", "device": device, "hidden": HIDDEN, "ranges": [[7000, 7303]], "rows": [1, 16],
        "sides": ["cuBLAS", "pyprune, packed"], "points": points, "finished": finished, "bandwidth": BANDWIDTH,
    }  # fmt: skip


def layer_peer(device: str = "NVIDIA H100 80GB HBM3") -> dict[str, Any]:
    gain = {"median": 1.2, "low": 1.18, "high": 1.22}
    line = {"batch": 1, "mode": "default", "speedup": gain, "share": {"pyprune": 0.85, "peer": 0.71}}
    absent = {"max-autotune-no-cudagraphs, batch 1": "compiling took more than 30 s"}
    return head("layer-peer", device) | {"layers": 32, "timings": [line], "absent": absent}
