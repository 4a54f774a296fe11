"""Remove blocks, save the smaller model, and load it again, by pyprune and by plain transformers.

python examples/prune_reload.py [--model smollm2-135m] [--ratio 0.2] [--out DIR]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import pyprune
from pyprune.scoring.calibration import calibration

TINY = "shape:hidden=64,blocks=6,heads=4,kv_heads=2,head_dim=16,ffn=96,vocab=256"


def main(model: str, ratio: float, out: Path, keep: str) -> None:
    decoder = pyprune.load(model)
    samples = calibration(decoder, samples=4, seq_len=32).input_ids

    scores = pyprune.score(decoder, samples)  # the perplexity without each block, all in one pass
    pruning = pyprune.depth(scores, ratio=ratio)
    smaller = pyprune.apply(decoder, pruning)
    smaller.save(out)
    print(f"blocks {list(pruning.blocks)} of {len(decoder.blocks)} cut, saved to {keep}")

    again = pyprune.load(str(out))
    assert again.pruning == pruning  # what was cut is kept beside the weights
    plain = AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        logits = plain(samples).logits
    print(f"transformers reads {plain.config.num_hidden_layers} blocks; logits are finite: {logits.isfinite().all()}")
    print(f"{decoder.parameters():,} parameters before, {again.parameters():,} after")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=TINY, help="a name, directory or .gguf file (default: a tiny random model)")
    parser.add_argument("--ratio", type=float, default=0.2, help="share of the parameters to remove (default: 0.2)")
    parser.add_argument("--out", type=Path, help="new directory for the checkpoint (default: a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        keep = str(options.out) if options.out else "a temporary directory (--out DIR keeps it)"
        main(options.model, options.ratio, options.out or Path(folder) / "pruned", keep)
