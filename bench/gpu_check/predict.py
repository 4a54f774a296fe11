"""What a step should take, from bytes and launches, before it is measured: `python -m bench.gpu_check.predict`.

    t = bytes / bandwidth + launches x c

Bytes and launches follow from the model's sizes and the kernels' own tables. c, what a launch costs beyond its bytes
(its beginning, its end and the gap), is what the kept runs on an H100 left over, and is taken to be the same on other
GPUs. The command prints the tables of bench/NOTES.md.
"""

from __future__ import annotations

import functools
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from bench.gpu_check import paper_rows
from bench.gpu_check.child import make_importable
from bench.gpu_check.launches import (
    block_bytes,
    block_launches,
    prompt_launches,
    step_bytes,
    step_launches,
)
from bench.gpu_check.settings import ROOT, Settings
from pyprune.files import read_json
from pyprune.models.decoder import Decoder
from pyprune.models.shapes import load_shape
from pyprune.study.paper import facts
from pyprune.triton_kernels.configs import SKINNY_ROWS

RESULTS = ROOT / "bench" / "results"
RUN_2, RUN_3 = "gpu-check-h100-2-decode-scoring.json", "gpu-check-h100-3-layouts-chosen.json"
RUN_CACHE = 44
"""Of those runs: prompts of 12 and up to 32 new tokens."""

H100_DATASHEET, H100_DATASHEET_FLOPS = 3.35e12, 989e12
RTX_3090_DATASHEET, RTX_3090_DATASHEET_FLOPS = 936e9, 71e12
H200_COPY, H200_FLOPS = 4.3e12, 788e12
"""bytes/s and dense bf16 operations/s: the vendor's datasheets, and a copy and a product timed on an H200."""

SMALL_HIDDEN = 2048
"""Models up to this hidden size have kernels so short that c was greater: theirs is the 1B shape's."""

CACHE, PROMPT = 140, 12


@dataclass(frozen=True)
class Machine:
    """bandwidth in bytes/s, gemm in operations/s of a large bf16 product; `capability` names the kernels' table."""

    name: str
    bandwidth: float
    gemm: float
    capability: int


@dataclass(frozen=True)
class Left:
    """What the kept runs leave to be explained: seconds a launch by (small model, tensor cores); seconds that starting
    a kernel from Python takes, of few rows and (True) of many, where most of them are torch's; and of scoring the
    products' share of the GEMM rate and the other kernels' bytes."""

    launch: dict[tuple[bool, bool], float]
    host_launch: dict[bool, float]
    gemm_share: float
    other_bytes: float
    idle: float


def h100() -> Machine:
    """The machine of run 3."""
    ceilings = _part(RUN_3, "ceilings")
    return Machine("H100", ceilings["bandwidth"], ceilings["gemm_flops"], 90)


def machines() -> list[Machine]:
    """H200 and H100 with rates that were read on such cards; RTX 3090 with the H100's shares of its datasheet's."""
    h100_machine = h100()
    share, gemm_share = h100_machine.bandwidth / H100_DATASHEET, h100_machine.gemm / H100_DATASHEET_FLOPS
    rtx = Machine("RTX 3090", share * RTX_3090_DATASHEET, gemm_share * RTX_3090_DATASHEET_FLOPS, 86)
    return [Machine("H200", H200_COPY, H200_FLOPS, 90), h100_machine, rtx]


def measured_machine(settings: Settings, device: torch.device) -> Machine:
    """The machine at hand with the rates that its run measured, which must be known; a CPU takes the H100's kernels."""
    bandwidth, gemm = settings.bandwidth, settings.gemm_flops
    assert bandwidth is not None
    if device.type != "cuda":
        return Machine("cpu", bandwidth, gemm or bandwidth, 90)
    major, minor = torch.cuda.get_device_capability(device)
    return Machine(torch.cuda.get_device_name(device), bandwidth, gemm or bandwidth, 10 * major + minor)


def middle(cache: int) -> int:
    """The cache row of a step half way between a short prompt's end and the cache's."""
    return (min(PROMPT, cache - 1) + cache) // 2


@functools.cache
def left() -> Left:
    """Fitted to the kept runs on an H100."""
    decoded = {}
    for name in (RUN_2, RUN_3):  # the later run's where both have a shape and batch
        part, bandwidth = _part(name, "decode-cuda"), _part(name, "ceilings")["bandwidth"]
        decoded.update(
            {(line["model"], line["batch"]): (line, bandwidth) for line in part["timings"] if "pyprune_share" in line}
        )
    costs: dict[tuple[bool, bool], list[float]] = {}
    host: dict[bool, list[float]] = {False: [], True: []}
    for (model, batch), (line, bandwidth) in decoded.items():
        decoder = meta(model)
        cost = line["pyprune_step_seconds"] - step_bytes(decoder, batch, middle(RUN_CACHE)) / bandwidth
        key = decoder.hidden_size <= SMALL_HIDDEN, batch > 2
        costs.setdefault(key, []).append(cost / step_launches(decoder, batch, RUN_CACHE, 90))
    for line in _part(RUN_2, "decode-cuda")["timings"]:  # run 3's processor was slower
        seconds = statistics.median(line["seconds"]["pyprune, 1 new"])
        launches = prompt_launches(meta(line["model"]), line["batch"], PROMPT)
        host[line["batch"] * PROMPT > SKINNY_ROWS].append(seconds / launches)
    return Left(
        {key: statistics.fmean(cost) for key, cost in costs.items()},
        {key: statistics.fmean(cost) for key, cost in host.items()},
        *_scoring_left(),
    )


def _scoring_left() -> tuple[float, float, float]:
    """Of run 2's scoring: the products' share of the GEMM rate, other kernels as bytes, seconds without a kernel."""
    ceilings, scored = _part(RUN_2, "ceilings"), _part(RUN_2, "scoring-triton")
    [run] = [run for run in _part(RUN_2, "profile")["runs"] if run["what"].startswith("scores")]
    products = sum(kernel["seconds"] for kernel in run["kernels"] if kernel["kernel"].startswith("nvjet"))
    flops = scoring_flops(meta("shape:llama-7b"), scored["samples"], scored["tokens"])
    other_seconds = run["seconds"] - products
    share = flops / products / ceilings["gemm_flops"]
    return share, other_seconds * ceilings["bandwidth"], scored["median_seconds"] - run["seconds"]


def _part(file: str, name: str) -> dict[str, Any]:
    return next(part["result"] for part in read_json(RESULTS / file)["parts"] if part["name"] == name)


def decode_seconds(
    decoder: Decoder, batch: int, cache: int, position: int, machine: Machine, left_out: int = 0
) -> float:
    """A decode step: bytes / bandwidth + launches x c."""
    launches = step_launches(replace(decoder, blocks=decoder.blocks[left_out:]), batch, cache, machine.capability)
    small, tensor_cores = decoder.hidden_size <= SMALL_HIDDEN, batch > 2
    cost = left().launch[small, tensor_cores]
    return step_bytes(decoder, batch, position, left_out) / machine.bandwidth + launches * cost


def masked_share(decoder: Decoder, batch: int, cache: int, machine: Machine) -> float:
    """A masked block's launches over a running block's time, at most: c counts beginnings of loads too, which a kernel
    that reads its flag and ends has not."""
    block = decoder.blocks[0]
    launches = block_launches(decoder, block, batch, cache, machine.capability)
    masked = launches * left().launch[decoder.hidden_size <= SMALL_HIDDEN, batch > 2]
    return masked / (block_bytes(block) / machine.bandwidth + masked)


def scoring_flops(decoder: Decoder, samples: int, tokens: int) -> float:
    """Operations of the blocks' products when n blocks are scored and prefixes are shared: block i runs i + 1 times."""
    runs = range(1, len(decoder.blocks) + 1)
    weights = [block_bytes(block) / decoder.dtype.itemsize for block in decoder.blocks]
    return sum(2 * size * samples * tokens * times for size, times in zip(weights, runs, strict=True))


def scoring_seconds(decoder: Decoder, samples: int, tokens: int, machine: Machine) -> float:
    """Products at their share of the GEMM rate, the other kernels' bytes, and the seconds without a kernel."""
    fitted, flops = left(), scoring_flops(decoder, samples, tokens)
    other_bytes = fitted.other_bytes * flops / scoring_flops(meta("shape:llama-7b"), 10, 128)
    return flops / (fitted.gemm_share * machine.gemm) + other_bytes / machine.bandwidth + fitted.idle


def prompt_seconds(decoder: Decoder, batch: int, machine: Machine) -> float:
    """A prompt whose kernels Python starts one by one: the host's time, or the device's where that is longer."""
    products = 2 * batch * PROMPT * (decoder.parameters() - decoder.embedding.numel())
    device = max(decoder.bytes_per_token() / machine.bandwidth, products / machine.gemm)
    return max(prompt_launches(decoder, batch, PROMPT) * left().host_launch[batch * PROMPT > SKINNY_ROWS], device)


def linear_seconds(out: int, inner: int, rows: int, machine: Machine, weights: int = 1) -> float:
    """One product with `weights` matrices [out, inner] in 2-byte values: its bytes or its operations, no launch."""
    size = 2 * (weights * out * inner + rows * (inner + out))
    return max(size / machine.bandwidth, 2 * weights * rows * out * inner / machine.gemm)


@functools.cache
def meta(spec: str) -> Decoder:
    """The shape's sizes alone."""
    return load_shape(spec, torch.bfloat16, torch.device("meta"))


def rows(machine: Machine) -> Iterator[tuple[str, str, str]]:
    """(what, predicted, share of the bandwidth) of everything but Table 1."""
    for spec, cache in (("llama-7b", RUN_CACHE), ("llama-7b", CACHE), ("llama-7b", 4096), ("llama-1b", CACHE)):
        decoder = meta(f"shape:{spec}")
        for batch in (1, 4, 16):
            seconds = decode_seconds(decoder, batch, cache, middle(cache), machine)
            share = step_bytes(decoder, batch, middle(cache)) / machine.bandwidth / seconds
            yield f"a step of {spec}, cache {cache}, batch {batch}", _ms(seconds), f"{share:.0%}"
    original = meta("shape:llama-7b")
    for batch in (1, 16):
        share = masked_share(original, batch, CACHE, machine)
        yield f"a masked block of llama-7b, batch {batch}", f"at most {share:.0%} of a block", ""
    yield "scoring 32 blocks of llama-7b, 10 x 128 tokens", _ms(scoring_seconds(original, 10, 128, machine)), ""
    for batch in (1, 4, 16):
        yield f"a prompt of 12 tokens, llama-7b, batch {batch}", _ms(prompt_seconds(original, batch, machine)), ""


def table1_rows(machine: Machine) -> Iterator[tuple[str, str, str]]:
    """(row, a step at batch 1, at batch 16), each with the speed-up over the original; packed and padded are alike,
    for a gap between rows is not read."""
    original = meta("shape:llama-7b")
    original_seconds = {batch: decode_seconds(original, batch, CACHE, middle(CACHE), machine) for batch in (1, 16)}
    for ratio in facts.ratios("llama-7b"):
        for method in facts.METHODS:
            decoder = paper_rows.model_of(paper_rows.sizes("llama-7b", method, ratio, original), original)
            steps = {batch: decode_seconds(decoder, batch, CACHE, middle(CACHE), machine) for batch in original_seconds}
            cells = [
                f"{_ms(steps[batch])}, {original_seconds[batch] / steps[batch]:.2f}x" for batch in original_seconds
            ]
            yield f"{method} {ratio}", cells[0], cells[1]


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.{2 if seconds < 0.02 else 0}f} ms"


def tables() -> str:
    """All tables in Markdown, with columns to be filled when it is measured."""
    costs = left()
    lines = ["| model, rows of activations | c |", "|---|---|"]
    for (small, cores), cost in sorted(costs.launch.items()):
        lines.append(f"| {'1B' if small else '7B'}, {'3 to 64' if cores else '1 and 2'} | {1e6 * cost:.1f} us |")
    for batch_16, cost in costs.host_launch.items():
        lines.append(f"| any, {'more' if batch_16 else '1 to 64'}, started from Python | {1e6 * cost:.0f} us |")
    for machine in machines():
        lines += ["", f"### {machine.name}: {machine.bandwidth / 1e12:.2f} TB/s, {machine.gemm / 1e12:.0f} TFLOP/s", ""]
        lines += [
            "| what | predicted | share of bandwidth, cache counted | measured | what came of it |",
            "|---|---|---|---|---|",
        ]
        lines += [f"| {what} | {predicted} | {share} | not measured | |" for what, predicted, share in rows(machine)]
        lines += ["", "| Table 1 | M = 1 | measured, packed and padded | M = 16 | measured, packed and padded |"]
        lines += ["|---|---|---|---|---|"]
        lines += [
            f"| {what} | {batch_1} | not measured | {batch_16} | not measured |"
            for what, batch_1, batch_16 in table1_rows(machine)
        ]
    return "\n".join(lines)


def main() -> int:
    """Print the tables."""
    make_importable()
    print(tables())
    return 0


if __name__ == "__main__":
    sys.exit(main())
