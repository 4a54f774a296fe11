"""SmolLM2-135M in bf16: 12 prompt tokens, 32 new ones, pyprune against Hugging Face (sdpa, not compiled)."""

from __future__ import annotations

import pytest
import torch

from pyprune import Engine
from pyprune.study.compare import hugging_face

PROMPT, NEW = 12, 32


@pytest.mark.parametrize("batch", [1, 4, 8, 16])
def test_decode_bf16_against_hugging_face(paired, benchmark, smollm2, batch: int):
    low = smollm2.to(torch.bfloat16)
    engine, peer = Engine(low, max_batch=batch, max_len=PROMPT + NEW), hugging_face(low)
    prompt = torch.randint(0, low.vocab_size, (batch, PROMPT), generator=torch.Generator().manual_seed(0))

    def theirs() -> None:
        peer(prompt, NEW)

    def ours() -> None:
        engine.generate(prompt, max_new_tokens=NEW)

    paired(ours, theirs, 7, "Hugging Face")
    benchmark.extra_info["tokens_per_second"] = batch * NEW / benchmark.stats.stats.median
    benchmark.extra_info["bytes_per_token"] = low.bytes_per_token()
