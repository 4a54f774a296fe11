"""Score inside a tool of your own: your loaded model goes in, and every candidate's score comes out of one pass.

python examples/score_in_your_tool.py [--model smollm2-135m]

A candidate is whatever your tool would try: blocks or sublayers that go, or a module in the place of another. What the
scores choose goes back in the form of other tools.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch

import pyprune
from pyprune.scoring.calibration import calibration
from pyprune.scoring.other_tools import layer_importance, llm_drop_lists, removed_layers

TINY = "shape:hidden=64,blocks=6,heads=4,kv_heads=2,head_dim=16,ffn=96,vocab=256"


def main(model: str) -> None:
    if model == TINY:
        print("A tiny random model: its perplexities mean nothing. --model smollm2-135m takes a real one.")
    # Your tool has a PreTrainedModel; here it is made from a name.
    network: Any = pyprune.to_transformers(pyprune.load(model))
    layers, hidden = network.config.num_hidden_layers, network.config.hidden_size
    ids = calibration(pyprune.load(model), samples=4, seq_len=32).input_ids

    scores = pyprune.score(network, ids, measure=["ppl", "kl"])
    print("importance of each layer:", {layer: round(value, 3) for layer, value in layer_importance(scores).items()})
    pruning = pyprune.depth(scores, count=2)
    print("layers to drop:", removed_layers(pruning))
    print("for LLM-Drop:", json.dumps(llm_drop_lists(pruning)))

    middle = layers // 2
    linear = torch.nn.Linear(hidden, hidden, bias=False)
    torch.nn.init.normal_(linear.weight, std=0.02)
    candidates = {
        "without two blocks": pyprune.Pruning(blocks=(middle, middle + 1)),
        "without an attention": pyprune.Pruning(mha=(middle,)),
        "half of an FFN": pyprune.Pruning(neurons={middle: tuple(range(network.config.intermediate_size // 2))}),
        "a linear map for an FFN": {(middle, "ffn"): linear},
    }
    alternatives = pyprune.score(network, ids, candidates=candidates)
    for name, value in zip(alternatives.names(), alternatives.values, strict=True):
        print(f"{name}: perplexity {value:.2f} ({alternatives.baseline:.2f} as it is)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=TINY, help="a name, directory or .gguf file (default: a tiny random model)")
    main(parser.parse_args().model)
