"""Many rows: SmolLM2-135M's prompts and scores by our own kernels, by torch's GEMM, and by its peers, interleaved.

`-k bf16` or `-k fp16` picks the dtype of the weights; in float32 both are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from statistics import median

import pytest
import torch

from bench.naive import naive_scores
from bench.peers import Absent, HuggingFaceCompiled, PyPrune, opened
from bench.rounds import Side
from bench.tables import FASTER, interval_text
from pyprune import score, to_transformers
from pyprune.models.tensors import DTYPES
from pyprune.ops import native
from pyprune.scoring.calibration import calibration

ROUNDS = 9
TORCH, NAIVE = "pyprune, torch's GEMM", "naive batched loop"


@pytest.fixture(scope="module", params=["bf16", "fp16"])
def low(request: pytest.FixtureRequest, smollm2):
    return smollm2.to(DTYPES[request.param])


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    native.select_gemm("auto")


def by(gemm: str, run: Callable[[], object]) -> Side:
    return Side(run, partial(native.select_gemm, gemm))


@pytest.mark.parametrize(("batch", "tokens"), [(4, 12), (16, 12), (1, 96), (1, 384), (4, 256), (1, 768)])
def test_prompts(interleaved, benchmark, table, low, all_peers, batch: int, tokens: int):
    prompts = torch.randint(0, low.vocab_size, (batch, tokens), generator=torch.Generator().manual_seed(0))
    sides, absent = {}, {}
    with ExitStack() as stack:
        for peer in (PyPrune(), *all_peers):
            if isinstance(peer, HuggingFaceCompiled):  # it compiles anew for every length
                continue
            try:
                decoding = stack.enter_context(opened(peer, low, batch, tokens + 1))
            except Absent as reason:
                absent[peer.name] = str(reason)
                continue
            sides[peer.name] = by("auto", partial(decoding.prefill, prompts))
            if isinstance(peer, PyPrune):
                sides[TORCH] = by("torch", partial(decoding.prefill, prompts))
        seconds = interleaved(sides, ROUNDS)
    ratios = benchmark.extra_info["ratio"]
    benchmark.extra_info.update(
        dtype=str(low.dtype).removeprefix("torch."),
        batch=batch,
        prompt_tokens=tokens,
        absent=absent,
        own_gemm=native.multiplies_many_rows(low.dtype),
    )
    for name, taken in seconds.items():
        cells = {"ms": f"{1e3 * median(taken):.0f}", "tokens/s": f"{batch * tokens / median(taken):.0f}"}
        versus = interval_text(ratios[name]) if name in ratios else ""
        table(
            f"{low.name}, {low.dtype}, prefill", {"prompt": f"{batch} x {tokens}", "by": name, **cells, FASTER: versus}
        )


def test_scores(interleaved, benchmark, table, low):
    """Perplexity without each of 30 blocks on 4 x 128 tokens; the naive loop runs transformers in the same dtype."""
    if low.dtype == torch.float16:
        pytest.skip("the naive loop takes many minutes in float16")
    samples = calibration(low, samples=4).input_ids
    model = to_transformers(low)
    found: dict[str, list[float]] = {}

    def ours(name: str) -> None:
        scores = score(low, samples)
        found[name] = [scores.baseline, *scores.values]

    sides = {
        "pyprune": by("auto", partial(ours, "pyprune")),
        TORCH: by("torch", partial(ours, TORCH)),
        NAIVE: Side(lambda: found.update({NAIVE: naive_scores(model, samples, None)})),
    }
    seconds = interleaved(sides, 5, warmups=0)
    exact = score(low.to(torch.float32), samples)
    reference = [exact.baseline, *exact.values]
    away = {
        name: [abs(one / true - 1) for one, true in zip(values, reference, strict=True)]
        for name, values in ((name, found[name]) for name in sides)
    }
    benchmark.extra_info["relative_difference_from_float32"] = away
    for (name, taken), distance in zip(seconds.items(), away.values(), strict=True):
        ratio = benchmark.extra_info["ratio"].get(name)
        cells = {"seconds": f"{median(taken):.1f}", FASTER: interval_text(ratio) if ratio else ""}
        cells["from float32, median"], cells["largest"] = f"{median(distance):.1e}", f"{max(distance):.1e}"
        table(f"scores of 30 blocks, {low.dtype}", {"by": name, **cells})
