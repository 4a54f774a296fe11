"""SmolLM2-135M, 12 prompt tokens, 64 decode steps: pyprune, Hugging Face and llama.cpp, interleaved in one run.

Only the decode steps are timed. `-k bf16`, `-k fp16` or `-k fp32` picks the dtype of the weights.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from statistics import median

import pytest
import torch

from bench.peers import Absent, PyPrune, opened
from bench.rounds import Side
from bench.tables import FASTER, interval_text
from pyprune.models.tensors import DTYPES
from pyprune.study.measure import speedup

PROMPT, STEPS, ROUNDS = 12, 64, 9
COMPRESSED = "pyprune, compressed, is faster by"


@pytest.fixture(scope="module", params=["bf16", "fp16", "fp32"])
def low(request: pytest.FixtureRequest, smollm2):
    return smollm2.to(DTYPES[request.param])


@pytest.mark.parametrize("batch", [1, 4, 8, 16])
def test_decode(interleaved, benchmark, table, low, memory, all_peers, batch: int):
    prompts = torch.randint(0, low.vocab_size, (batch, PROMPT), generator=torch.Generator().manual_seed(0))
    sides, first, settings, sizes, absent = {}, {}, {}, {}, {}
    with ExitStack() as stack:
        for peer in (PyPrune(), PyPrune(weight_format="bf16-lossless12"), *all_peers):
            try:
                decoding = stack.enter_context(opened(peer, low, batch, PROMPT + STEPS))
            except Absent as reason:
                absent[peer.name] = str(reason)
                continue
            decoding.prefill(prompts)
            first[peer.name] = decoding.decode(STEPS)
            settings[peer.name] = peer.describe()
            sizes[peer.name] = decoding.bytes_per_token or low.bytes_per_token()
            sides[peer.name] = Side(partial(decoding.decode, STEPS), partial(decoding.prefill, prompts))
        reading = memory.reading(STEPS * low.bytes_per_token())
        seconds = interleaved({**sides, "memory read": Side(reading.run)}, ROUNDS)

    read = reading.bytes / median(seconds["memory read"])
    rates = {name: batch * STEPS / median(seconds[name]) for name in sides}
    ratios = benchmark.extra_info["ratio"]
    small = seconds.get("pyprune, compressed")
    over_small = {name: speedup(seconds[name], small) for name in sides if small and seconds[name] is not small}
    benchmark.extra_info.update(
        dtype=str(low.dtype).removeprefix("torch."),
        batch=batch,
        prompt_tokens=PROMPT,
        decode_steps=STEPS,
        tokens_per_second=rates,
        bytes_per_token=sizes,
        read_bytes=reading.bytes,
        read_bytes_per_second=read,
        ratio_to_compressed=over_small,
        settings=settings,
        absent=absent,
        # Where two logits are near each other the roundings of a low dtype decide, and sequences part for good.
        same_tokens={name: (tokens == first["pyprune"]).float().mean().item() for name, tokens in first.items()},
    )
    title = f"{low.name}, {low.dtype}, {PROMPT} prompt tokens, {STEPS} decode steps, {torch.get_num_threads()} threads"
    for name, rate in rates.items():
        share = rate / batch * sizes[name] / read
        versus = interval_text(ratios[name]) if name in ratios else ""
        compressed = interval_text(over_small[name]) if name in over_small else ""
        cells = {"tokens/s": f"{rate:.1f}", "of the read limit": f"{share:.0%}", FASTER: versus, COMPRESSED: compressed}
        table(title, {"batch": str(batch), "engine": name, **cells})
    for name, reason in absent.items():
        cells = {"tokens/s": "absent", "of the read limit": "", FASTER: reason, COMPRESSED: ""}
        table(title, {"batch": str(batch), "engine": name, **cells})
