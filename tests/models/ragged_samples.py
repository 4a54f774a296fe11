"""Small decoders whose blocks differ in every way that a pruning can make them."""

from __future__ import annotations

from dataclasses import replace

import torch

from pyprune.models.decoder import Decoder, Linear
from pyprune.pruning import Pruning, apply, pad
from tests import seeds

WINDOWS = {"use_sliding_window": True, "sliding_window": 5, "num_hidden_layers": 4,
           "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]}  # fmt: skip
MODELS = {
    "llama": ("llama", {"num_hidden_layers": 4}),
    "llama with biases": ("llama", {"num_hidden_layers": 4, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {"num_hidden_layers": 4, "sliding_window": None}),
    "mistral with a window": ("mistral", {"num_hidden_layers": 4, "sliding_window": 5}),
    "qwen2 with windows": ("qwen2", WINDOWS),
    "qwen3 with windows": ("qwen3", WINDOWS),
}
"""Name -> model type and configuration, for the fixture `random_model`."""

PRUNINGS = {
    "depth": Pruning(blocks=[1]),
    "width": Pruning(kv_groups={i: [i % 2] for i in range(4)}, neurons={i: [0, 5 + i] for i in range(4)}),
    "attention of the first": Pruning(mha=[0]),
    "halves": Pruning(mha=[1, 2], ffn=[0, 3]),
    "no attention at all": Pruning(mha=[0, 1, 2, 3]),
    "ragged": Pruning(kv_groups={0: [1], 3: [0]}, neurons={0: [3], 2: [*range(10), 20]}),
    "composed": Pruning(blocks=[0], mha=[2], ffn=[1], kv_groups={3: [1]}, neurons={2: [4, 9], 3: [1]}),
}
RAGGED = ["attention of the first", "halves", "no attention at all", "ragged", "composed", "biases", "ragged, padded"]
"""Those of `variants` that no plain configuration describes."""


def variants(decoder: Decoder) -> dict[str, Decoder]:
    """The prunings above of a decoder of four blocks, and others made from them."""
    made = {name: apply(decoder, pruning) for name, pruning in PRUNINGS.items()}
    made["padded"] = pad(made["width"], 16)
    made["ragged, padded"] = pad(made["ragged"], 16)
    made["biases"] = with_biases(made["ragged"])
    return made


def with_biases(decoder: Decoder) -> Decoder:
    """Biases on o in every second block and on down in the others, as FLAP adds them."""
    generator = seeds.generator(5)

    def biased(linear: Linear) -> Linear:
        bias = torch.randn(linear.weight.shape[0], generator=generator)
        return Linear(linear.weight, bias.to(linear.weight.dtype))

    blocks = []
    for place, block in enumerate(decoder.blocks):
        mha, ffn = block.mha, block.ffn
        if mha is not None and place % 2:
            mha = replace(mha, o=biased(mha.o))
        elif ffn is not None:
            ffn = replace(ffn, down=biased(ffn.down))
        blocks.append(replace(block, mha=mha, ffn=ffn))
    return replace(decoder, blocks=tuple(blocks))
