"""Prune, repair without training, then retrain with LoRA, and show what each gives back.

python examples/repair_and_retrain.py [--model smollm2-135m --text demo:boolq --steps 200]

Retraining needs peft: pip install "pyprune[retrain]".
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

import pyprune
from pyprune.scoring.calibration import calibration

TINY = "shape:hidden=64,blocks=6,heads=4,kv_heads=2,head_dim=16,ffn=96,vocab=256"


def texts(decoder: Any, text: str | None, seq_len: int) -> tuple[Any, torch.Tensor]:
    """What to retrain on, and windows to repair and judge by; for a random model random tokens, of a few kinds only, so
    that there is something to learn."""
    if text is not None:
        return text, calibration(decoder, text, samples=64, seq_len=seq_len).input_ids
    tokens = torch.randint(0, 16, (128, seq_len), generator=torch.Generator().manual_seed(0))
    return tokens, tokens[:64]


def main(model: str, text: str | None, steps: int, seq_len: int) -> None:
    if model == TINY:
        print("A tiny random model: its perplexities mean nothing. --model smollm2-135m takes a real one.")
    decoder = pyprune.load(model)
    training, windows = texts(decoder, text, seq_len)
    pruning = pyprune.depth(pyprune.score(decoder, windows[:8]), ratio=0.2)
    pruned = pyprune.apply(decoder, pruning)
    repaired = pyprune.repair(decoder, pruning, windows)
    retrained = pyprune.retrain(
        repaired, text=training, steps=steps, cutoff=seq_len, batch=8, micro_batch=4, learning_rate=1e-3, seed=0
    )
    for name, stage in {"original": decoder, "pruned": pruned, "repaired": repaired, "retrained": retrained}.items():
        print(f"{name}: perplexity {pyprune.perplexity(stage, windows):.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=TINY, help="a name, directory or .gguf file (default: a tiny random model)")
    parser.add_argument("--text", help="a file, demo:NAME or hf:NAME (default: random tokens, for the random model)")
    parser.add_argument("--steps", type=int, default=10, help="optimiser steps (default: 10)")
    parser.add_argument("--seq-len", type=int, default=32, help="tokens of a sample (default: 32)")
    options = parser.parse_args()
    main(options.model, options.text, options.steps, options.seq_len)
