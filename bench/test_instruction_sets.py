"""bf16 linears of 4096 x 4096 and decoding of the 1B shape under every instruction set of a processor, interleaved."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median

import pytest
import torch

import pyprune
from bench.peers import Decoding, PyPrune
from bench.rounds import Side
from bench.tables import interval_text
from pyprune import ops
from pyprune.models.decoder import Decoder
from pyprune.ops import native

SIZE, MATRICES, ROUNDS, PROMPT, STEPS = 4096, 12, 7, 12, 16


@pytest.fixture(autouse=True)
def _selected():
    before = native.selected_isa()
    yield
    if before is not None:
        native.select_isa(before)


@pytest.fixture(scope="module")
def weights() -> list[torch.Tensor]:
    """More than caches hold."""
    return [(torch.randn(SIZE, SIZE) * SIZE**-0.5).to(torch.bfloat16) for _ in range(MATRICES)]


@pytest.fixture(scope="module")
def llama_1b() -> Decoder:
    return pyprune.load("shape:llama-1b", dtype=torch.bfloat16)


@pytest.mark.parametrize("rows", [1, 2, 4, 8, 16, 32, 64, 256])
def test_linear(interleaved, benchmark, table, weights, rows: int):
    x = torch.randn(rows, SIZE)

    def run() -> None:
        for weight in weights:
            ops.padded_linear(x, weight)

    seconds = interleaved(sides(run), ROUNDS)
    for isa, taken in seconds.items():
        cells = {"rows": str(rows), "instruction set": isa, "us": f"{1e6 * median(taken) / MATRICES:.0f}"}
        table(f"bf16 linear {SIZE} x {SIZE}", {**cells, "over the first": over_first(benchmark, isa)})


@pytest.mark.parametrize("batch", [1, 4, 16])
def test_decode(interleaved, benchmark, table, llama_1b, batch: int):
    prompts = torch.randint(0, llama_1b.vocab_size, (batch, PROMPT), generator=torch.Generator().manual_seed(0))
    decoding: Decoding = PyPrune().open(llama_1b, batch, PROMPT + STEPS)
    seconds = interleaved(sides(partial(decoding.decode, STEPS), partial(decoding.prefill, prompts)), ROUNDS)
    for isa, taken in seconds.items():
        cells = {"batch": str(batch), "instruction set": isa, "ms a step": f"{1e3 * median(taken) / STEPS:.2f}"}
        table("shape:llama-1b, bf16", {**cells, "over the first": over_first(benchmark, isa)})


def sides(run: Callable[[], object], prepare: Callable[[], object] = lambda: None) -> dict[str, Side]:
    """The same under each instruction set but the portable one, the best first."""

    def select(isa: str) -> None:
        native.select_isa(isa)
        prepare()

    names = [isa for isa in native.runnable_isas() if isa != "portable"]
    if not names:
        pytest.skip("this processor has no instruction set beside the portable one, or the library is not loaded")
    return {isa: Side(run, partial(select, isa)) for isa in names}


def over_first(benchmark, isa: str) -> str:
    ratio = benchmark.extra_info["ratio"].get(isa)
    return "" if ratio is None else interval_text(ratio)
