"""Part: real weights on the GPU: logits and greedy tokens, against Hugging Face there and against our CPU path."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import pyprune
from bench.gpu_check.environment import gpu_report
from bench.gpu_check.race import quiet
from bench.gpu_check.settings import Save, Settings
from pyprune.study.timing import hugging_face

BATCHES, PROMPT, NEW = (1, 2, 4), 24, 32


def run(settings: Settings, save: Save) -> dict[str, Any]:
    """The checkpoint in bf16 on the device: errors of the prompt's last logits and of the scores, agreement of tokens.

    The yardstick is Hugging Face's float32 forward of the same bf16 weights on the CPU.
    """
    from transformers import AutoModelForCausalLM

    quiet()
    assert settings.model is not None
    device = torch.device(settings.device)
    decoder = pyprune.load(settings.model, dtype=torch.bfloat16, device=device)
    cpu_decoder = pyprune.load(settings.model, dtype=torch.bfloat16)
    peer = AutoModelForCausalLM.from_pretrained(settings.model, dtype=torch.bfloat16).to(device).eval()
    exact = AutoModelForCausalLM.from_pretrained(settings.model, dtype=torch.float32).eval()
    new = 4 if settings.dry_run else NEW
    result: dict[str, Any] = {"gpu": gpu_report(), "model": decoder.name, "prompt_tokens": PROMPT, "prompts": []}
    generator = torch.Generator().manual_seed(settings.seed)
    for batch in BATCHES:
        ids = torch.randint(0, decoder.vocab_size, (batch, PROMPT), generator=generator)
        with torch.inference_mode():
            true = exact(ids).logits[:, -1]
            theirs = peer(ids.to(device)).logits[:, -1].float().cpu()
        engine = pyprune.Engine(decoder, max_batch=batch, max_len=PROMPT + new)
        cpu_engine = pyprune.Engine(cpu_decoder, max_batch=batch, max_len=PROMPT + new)
        ours, on_cpu = engine.prefill(ids.to(device)).float().cpu(), cpu_engine.prefill(ids).float()
        tokens = engine.generate(ids.to(device), max_new_tokens=new).cpu()
        repeated = engine.generate(ids.to(device), max_new_tokens=new).cpu()
        result["prompts"].append(
            {
                "batch": batch,
                "logits_error": {
                    "pyprune": _error(ours, true), "hf": _error(theirs, true), "pyprune, CPU": _error(on_cpu, true),
                },
                "new_tokens": new,
                "tokens_as_hf": _agreement(tokens, hugging_face(decoder)(ids.to(device), new).cpu()[:, PROMPT:]),
                "tokens_as_our_cpu_path": _agreement(tokens, cpu_engine.generate(ids, max_new_tokens=new)),
                "same_tokens_twice": torch.equal(tokens, repeated),
            }
        )  # fmt: skip
        save(result)
    samples = torch.randint(0, decoder.vocab_size, (4, 32), generator=generator)
    values, reference = (
        pyprune.score(decoder, samples).values,
        pyprune.score(cpu_decoder.to(torch.float32), samples).values,
    )
    pairs = zip(values, reference, strict=True)
    result["scores_largest_relative_difference"] = max(abs(a - b) / b for a, b in pairs)
    return result


def _error(logits: Tensor, true: Tensor) -> float:
    """Largest error relative to the largest true logit."""
    return float((logits - true).abs().max() / true.abs().max())


def _agreement(tokens: Tensor, reference: Tensor) -> float:
    """Mean share of each sequence up to its first different token: after that the two have different pasts."""
    same = (tokens == reference).int().cumprod(dim=1)
    return float(same.float().mean())
