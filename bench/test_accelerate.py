"""transformers' own `generate` on SmolLM2-135M in bf16, 12 prompt tokens, 32 new ones: accelerated against as it is."""

from __future__ import annotations

from functools import partial
from statistics import median

import pytest
import torch

import pyprune
from bench.rounds import Side
from bench.tables import FASTER, interval_text

PROMPT, NEW, ROUNDS = 12, 32, 9


@pytest.mark.parametrize("batch", [1, 4])
def test_generate_of_transformers(interleaved, benchmark, table, smollm2, batch: int):
    low = smollm2.to(torch.bfloat16)
    models = {
        "pyprune.accelerate": pyprune.accelerate(pyprune.to_transformers(low)),
        "transformers": pyprune.to_transformers(low),
    }
    prompts = torch.randint(0, low.vocab_size, (batch, PROMPT), generator=torch.Generator().manual_seed(0))
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
    arguments = {"attention_mask": torch.ones_like(prompts), **options}
    tokens = {name: model.generate(prompts, **arguments)[:, PROMPT:] for name, model in models.items()}
    sides = {name: Side(partial(model.generate, prompts, **arguments)) for name, model in models.items()}
    seconds = interleaved(sides, ROUNDS)

    same = (tokens["pyprune.accelerate"] == tokens["transformers"]).float().mean().item()
    benchmark.extra_info.update(batch=batch, prompt_tokens=PROMPT, new_tokens=NEW, same_tokens=same)
    table(
        f"model.generate, {low.name}, bf16, {PROMPT} prompt tokens, {NEW} new, {torch.get_num_threads()} threads",
        {
            "batch": str(batch),
            **{f"{name}, tokens/s": f"{batch * NEW / median(samples):.1f}" for name, samples in seconds.items()},
            FASTER: interval_text(benchmark.extra_info["ratio"]["transformers"]),
        },
    )
