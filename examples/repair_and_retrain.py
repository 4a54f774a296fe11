"""Prune, repair without training, then retrain with LoRA, and show what each gives back.

python examples/repair_and_retrain.py [--model smollm2-135m --text demo:lambada --steps 200]

Retraining needs peft: pip install "pyprune[retrain]".
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

import pyprune
from pyprune.scoring.calibration import calibration

TINY = "shape:hidden=64,blocks=6,heads=4,kv_heads=2,head_dim=16,ffn=96,vocab=256"


def texts(decoder: Any, text: str | None, held_out: str, seq_len: int) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """What to retrain on, windows to choose and repair by, and windows to judge by; for a random model random tokens,
    of a few kinds only, so that there is something to learn."""
    if text is not None:
        windows, judged = (
            calibration(decoder, name, samples=64, seq_len=seq_len).input_ids for name in (text, held_out)
        )
        return text, windows, judged
    tokens = torch.randint(0, 16, (160, seq_len), generator=torch.Generator().manual_seed(0))
    return tokens[:128], tokens[:64], tokens[128:]


def main(model: str, text: str | None, held_out: str, steps: int, seq_len: int) -> None:
    if model == TINY:
        print("A tiny random model: its perplexities mean nothing. --model smollm2-135m takes a real one.")
    decoder = pyprune.load(model)
    training, windows, judged = texts(decoder, text, held_out, seq_len)
    pruning = pyprune.depth(pyprune.score(decoder, windows[:8]), ratio=0.2)
    pruned = pyprune.apply(decoder, pruning)
    repaired = pyprune.repair(decoder, pruning, windows, steps=steps)
    retrained = pyprune.retrain(
        repaired, text=training, steps=steps, cutoff=seq_len, batch=8, micro_batch=4, learning_rate=1e-3, seed=0
    )
    for name, stage in {"original": decoder, "pruned": pruned, "repaired": repaired, "retrained": retrained}.items():
        print(f"{name}: perplexity {pyprune.perplexity(stage, judged):.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=TINY, help="a name, directory or .gguf file (default: a tiny random model)")
    parser.add_argument("--text", help="a file, demo:NAME or hf:NAME (default: random tokens, for the random model)")
    parser.add_argument("--held-out", default="demo:boolq", help="with --text, what to judge by (default: demo:boolq)")
    parser.add_argument("--steps", type=int, default=10, help="steps of repair and of retraining (default: 10)")
    parser.add_argument("--seq-len", type=int, default=32, help="tokens of a sample (default: 32)")
    options = parser.parse_args()
    main(options.model, options.text, options.held_out, options.steps, options.seq_len)
