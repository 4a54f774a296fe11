"""SmolLM2-135M in bf16: 12 prompt tokens, 32 new ones, pyprune against Hugging Face (sdpa, not compiled)."""

from __future__ import annotations

import pytest
import torch

from pyprune import Engine, to_transformers

PROMPT, NEW = 12, 32


@pytest.mark.parametrize("batch", [1, 4, 8, 16])
def test_decode_bf16_against_hugging_face(paired, benchmark, smollm2, batch: int):
    low = smollm2.to(torch.bfloat16)
    model, engine = to_transformers(low), Engine(low, max_batch=batch, max_len=PROMPT + NEW)
    prompt = torch.randint(0, low.vocab_size, (batch, PROMPT), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(prompt)

    def theirs() -> None:
        model.generate(prompt, attention_mask=mask, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)

    def ours() -> None:
        engine.generate(prompt, max_new_tokens=NEW)

    paired(ours, theirs, 7, "Hugging Face")
    benchmark.extra_info["tokens_per_second"] = batch * NEW / benchmark.stats.stats.median
    benchmark.extra_info["bytes_per_token"] = low.bytes_per_token()
