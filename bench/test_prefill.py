"""Many rows: SmolLM2-135M's prompts and scores by our own kernels, by torch's GEMM, and by its peers, interleaved.

`-k bf16`, `-k fp16` or `-k fp32` picks the dtype of the weights. "pyprune" takes what it takes by itself on this
processor (`own_gemm` in the JSON), the side next to it the other of the two.
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
from pyprune.runtime import attention
from pyprune.scoring.calibration import calibration

ROUNDS = 9
NAIVE = "naive batched loop"


@pytest.fixture(scope="module", params=["bf16", "fp16", "fp32"])
def low(request: pytest.FixtureRequest, smollm2):
    return smollm2.to(DTYPES[request.param])


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    native.select_gemm("auto")


def the_other(dtype: torch.dtype) -> tuple[str, str]:
    """The name of the side, and of the GEMM, that pyprune does not take by itself."""
    own = native.has_own_gemm(dtype)
    return ("pyprune, torch's GEMM", "torch") if own else ("pyprune, own kernels", "own")


def by(gemm: str, run: Callable[[], object]) -> Side:
    return Side(run, partial(native.select_gemm, gemm))


@pytest.mark.parametrize(("batch", "tokens"), [(4, 12), (16, 12), (1, 96), (1, 384), (4, 256), (1, 768)])
def test_prompts(interleaved, benchmark, table, low, all_peers, batch: int, tokens: int):
    prompts = torch.randint(0, low.vocab_size, (batch, tokens), generator=torch.Generator().manual_seed(0))
    sides, absent = {}, {}
    other, gemm = the_other(low.dtype)
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
                sides[other] = by(gemm, partial(decoding.prefill, prompts))
        seconds = interleaved(sides, ROUNDS)
    ratios = benchmark.extra_info["ratio"]
    benchmark.extra_info.update(
        dtype=str(low.dtype).removeprefix("torch."),
        batch=batch,
        prompt_tokens=tokens,
        absent=absent,
        own_gemm=native.has_own_gemm(low.dtype),
    )
    for name, taken in seconds.items():
        cells = {"ms": f"{1e3 * median(taken):.0f}", "tokens/s": f"{batch * tokens / median(taken):.0f}"}
        versus = interval_text(ratios[name]) if name in ratios else ""
        table(
            f"{low.name}, {low.dtype}, prefill", {"prompt": f"{batch} x {tokens}", "by": name, **cells, FASTER: versus}
        )


def test_scores(interleaved, benchmark, table, low):
    """Perplexity without each of 30 blocks on 4 x 128 tokens; the naive loop runs transformers in bf16, if at all."""
    samples = calibration(low, samples=4).input_ids
    other, gemm = the_other(low.dtype)
    found: dict[str, list[float]] = {}

    def ours(name: str) -> None:
        scores = score(low, samples)
        found[name] = [scores.baseline, *scores.values]

    sides = {
        "pyprune": by("auto", partial(ours, "pyprune")),
        other: by(gemm, partial(ours, other)),
    }
    if low.dtype == torch.bfloat16:
        model = to_transformers(low)
        sides[NAIVE] = Side(lambda: found.update({NAIVE: naive_scores(model, samples, None)}))
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


@pytest.mark.parametrize(
    ("batch", "tokens", "before"), [(1, 32, 0), (1, 96, 0), (4, 256, 0), (1, 256, 512), (1, 768, 0)]
)
def test_attention(interleaved, benchmark, table, low, monkeypatch, batch: int, tokens: int, before: int):
    """SmolLM2's attention of `tokens` new tokens behind `before` others: our own kernel against torch's SDPA."""
    q = torch.randn(batch, tokens, 9, 64)
    keys, values = (torch.randn(batch, 3, before + tokens, 64).to(low.dtype) for _ in range(2))
    positions = torch.arange(before, before + tokens).expand(batch, tokens).contiguous()
    attend = attention.Attention(positions, before)

    def side(own: bool) -> Side:
        return Side(lambda: attend(q, keys, values, 0), lambda: monkeypatch.setattr(attention, "ANY_TOKENS", own))

    seconds = interleaved({"own": side(True), "SDPA": side(False)}, 30, warmups=3)
    cells = {name: f"{1e3 * median(taken):.2f}" for name, taken in seconds.items()}
    ratio = interval_text(benchmark.extra_info["ratio"]["SDPA"])
    table(
        f"attention, {low.dtype}, ms", {"tokens": f"{batch} x {tokens}", "before": str(before), **cells, FASTER: ratio}
    )
