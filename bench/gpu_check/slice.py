"""A slice of a real model, small enough to be carried: `python -m bench.gpu_check.slice --out DIR`.

The first blocks of SmolLM2-135M in bf16 with the first part of its vocabulary, as a plain Hugging Face checkpoint. It
writes no sensible text, but its weights and activations have a real model's distribution, outliers included.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

import torch

import pyprune
from pyprune.errors import InputError
from pyprune.models.decoder import Decoder, Linear
from pyprune.models.demo import DEMO_MODEL

BLOCKS, VOCABULARY = 6, 4096


def cut(decoder: Decoder, blocks: int = BLOCKS, vocabulary: int = VOCABULARY) -> Decoder:
    """The first `blocks` blocks and `vocabulary` token ids, as a model of its own: no tokenizer, no end token."""
    if not (1 <= blocks <= len(decoder.blocks) and 1 <= vocabulary <= decoder.vocab_size):
        raise InputError(
            f"{decoder.name}: {blocks} blocks and {vocabulary} tokens; at most {len(decoder.blocks)} and "
            f"{decoder.vocab_size} are accepted"
        )
    embedding = decoder.embedding[:vocabulary].clone()
    bias = None if decoder.head.bias is None else decoder.head.bias[:vocabulary].clone()
    head = Linear(embedding if decoder.tied else decoder.head.weight[:vocabulary].clone(), bias)
    no_ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    config = {**decoder.config, "num_hidden_layers": blocks, "vocab_size": vocabulary, **no_ids}
    return replace(
        decoder, name=f"{decoder.name}-first-{blocks}", config=config, embedding=embedding, head=head,
        blocks=decoder.blocks[:blocks], generation_config=None, tokenizer_source=None, pruning=None,
    )  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Write the slice; 0 when done, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check.slice", description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True, metavar="DIR", help="new or empty directory for the checkpoint")
    parser.add_argument("--model", default=DEMO_MODEL, help=f"what to cut from (default: {DEMO_MODEL})")
    parser.add_argument("--blocks", type=int, default=BLOCKS, help=f"blocks to keep (default: {BLOCKS})")
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY, help=f"token ids to keep (default: {VOCABULARY})")
    options = parser.parse_args(argv)
    try:
        small = cut(pyprune.load(options.model, dtype=torch.bfloat16), options.blocks, options.vocabulary)
        small.save(options.out)
    except InputError as error:
        print(f"slice: {error}", file=sys.stderr)
        return 2
    print(f"{small.name}: {2 * small.parameters() / 1e6:.1f} MB of weights")
    return 0


if __name__ == "__main__":
    sys.exit(main())
