"""Make a model that transformers has loaded faster where it stands, and undo it.

python examples/accelerate_hf.py [--model DIRECTORY_OR_NAME]
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import pyprune


def loaded(model: str | None) -> Any:
    """The model that transformers loads, or a small random Llama."""
    if model is not None:
        return AutoModelForCausalLM.from_pretrained(model).eval()
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4,
        vocab_size=512,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def generated(model: Any, prompt: torch.Tensor, new_tokens: int) -> tuple[torch.Tensor, float]:
    """Greedy tokens, and the seconds that they took."""
    start = time.perf_counter()
    tokens = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new_tokens, min_new_tokens=new_tokens,
        do_sample=False, pad_token_id=0,
    )  # fmt: skip
    return tokens, time.perf_counter() - start


def main(model: str | None, new_tokens: int) -> None:
    if model is None:
        print("A small random model: its speed says little. --model takes a real one.")
    network = loaded(model)
    prompt = torch.randint(1, network.config.vocab_size, (1, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = network(prompt).logits
        generated(network, prompt, new_tokens)  # warm-up
        _, seconds = generated(network, prompt, new_tokens)

        pyprune.accelerate(network)  # the same object: generate, pipelines and PEFT go on working
        difference = (network(prompt).logits - before).abs().max().item()
        generated(network, prompt, new_tokens)
        _, faster = generated(network, prompt, new_tokens)

        pyprune.restore(network)
        restored = torch.equal(network(prompt).logits, before)
    print(f"logits differ by {difference:.1e} at most, of {before.abs().max().item():.2f}")
    print(f"{new_tokens} tokens took {seconds:.3f} s, accelerated {faster:.3f} s (one run each)")
    print("restored to the bit:", restored)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a Hugging Face directory or name (default: a small random Llama)")
    parser.add_argument("--new-tokens", type=int, default=16, metavar="N", help="tokens to generate (default: 16)")
    options = parser.parse_args()
    main(options.model, options.new_tokens)
