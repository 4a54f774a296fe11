"""Generate with blocks skipped at run time: one model in memory, another set of blocks in each call.

python examples/runtime_skip.py [--model smollm2-135m]
"""

from __future__ import annotations

import argparse

import torch

import pyprune
from pyprune.scoring.calibration import calibration

TINY = "shape:hidden=64,blocks=6,heads=4,kv_heads=2,head_dim=16,ffn=96,vocab=256"


def main(model: str, new_tokens: int) -> None:
    decoder = pyprune.load(model)
    prompt = calibration(decoder, samples=1, seq_len=16).input_ids
    engine = pyprune.Engine(decoder, max_batch=1, max_len=prompt.shape[1] + new_tokens)

    whole = engine.generate(prompt, max_new_tokens=new_tokens)
    middle = len(decoder.blocks) // 2
    for skip in ([middle], [middle, middle + 1], {"ffn": [middle]}):
        shorter = engine.generate(prompt, max_new_tokens=new_tokens, skip=skip)
        same = (shorter == whole).float().mean().item()
        print(f"skip {skip}: {shorter[0, :8].tolist()} ..., {same:.0%} of them as without skipping")

    # A skipped block and one that is gone for good give the same tokens.
    pruning = pyprune.Pruning(blocks=(middle,))
    smaller = pyprune.Engine(pyprune.apply(decoder, pruning), max_batch=1, max_len=engine.max_len)
    skipped = engine.generate(prompt, max_new_tokens=new_tokens, skip=pruning)
    removed = smaller.generate(prompt, max_new_tokens=new_tokens)
    print("skipped and removed give the same tokens:", torch.equal(skipped, removed))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=TINY, help="a name, directory or .gguf file (default: a tiny random model)")
    parser.add_argument("--new-tokens", type=int, default=16, metavar="N", help="tokens to generate (default: 16)")
    options = parser.parse_args()
    main(options.model, options.new_tokens)
