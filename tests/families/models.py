"""Small random models of families that pyprune does not know, and the loop that published code would run on them."""

from __future__ import annotations

import math
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tests import seeds

VOCAB = 67
SIZES = {
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_WINDOWS = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"]
FAMILIES = {
    "gemma2": {"sliding_window": 5, "final_logit_softcapping": 3.0},
    "gemma3_text": {"sliding_window": 5, "layer_types": _WINDOWS, "final_logit_softcapping": None},
    "phi3": {},
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "mlp_only_layers": [0, 2],
        "decoder_sparse_step": 1,
    },
    "mixtral": {"num_local_experts": 4},
    "olmo2": {},
    "stablelm": {
        "num_key_value_heads": 4,
        "use_parallel_residual": True,
        "head_dim": None,
        "partial_rotary_factor": 0.5,
    },
    "gpt_neox": {"use_parallel_residual": True, "head_dim": None, "attention_bias": True},
    "gpt2": {"n_embd": 48, "n_layer": 4, "n_head": 4, "n_positions": 64},
    "cohere": {"logit_scale": 0.25, "head_dim": None},
    "granite": {"logits_scaling": 4.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "head_dim": None},
    "smollm3": {"no_rope_layers": [1, 0, 1, 0], "head_dim": None},
    "llama4_text": {
        "num_local_experts": 4,
        "intermediate_size_mlp": 40,
        "attention_chunk_size": 6,
        "no_rope_layers": [1, 1, 0, 1],
        "moe_layers": [1, 3],
    },
}
EXPERTS_PER_TOKEN = {"qwen3_moe": 2, "mixtral": 2, "llama4_text": 1}
"""The families of mixtures of experts."""
OURS = {"llama": {}, "mistral": {"sliding_window": 5}, "qwen2": {"head_dim": None}, "qwen3": {}}


def random_model(family, dtype=torch.float32, **fields):
    """A small random model of a family of transformers, in eval mode, no weight at a neutral value."""
    changed = {**FAMILIES, **OURS}.get(family, {}) | fields
    sizes = {} if family == "gpt2" else SIZES
    settings = {name: value for name, value in {**sizes, **changed}.items() if value is not None or name in changed}
    settings = {name: value for name, value in settings.items() if not (name == "head_dim" and value is None)}
    config = CONFIG_MAPPING[family](**{**settings, "vocab_size": VOCAB, "tie_word_embeddings": family == "gemma2"})
    generator = seeds.generator(sum(map(ord, family)))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.25 if parameter.dim() > 1 else parameter + noise * 0.2)
    return model.to(dtype)


def ids(samples=3, tokens=15, seed=3):
    return torch.randint(3, VOCAB, (samples, tokens), generator=seeds.generator(seed))


def right_padding(input_ids):
    """Right padding of different lengths."""
    mask = torch.ones_like(input_ids)
    mask[0, 9:] = 0
    mask[-1, 12:] = 0
    return mask


def layers_of(model):
    """The model's layers, by the names that these families give them."""
    base = getattr(model, "model", None) or model.base_model
    return getattr(base, "layers", None) or getattr(base, "h", None)


@contextmanager
def without_layers(model, *indices):
    """The model with layers that return what they are given."""
    layers = [layers_of(model)[index] for index in indices]
    for layer in layers:
        layer.forward = lambda hidden_states, *args, **kwargs: hidden_states
    try:
        yield model
    finally:
        for layer in layers:
            del layer.forward


@torch.no_grad()
def naive_perplexity(model, input_ids, mask=None):
    """exp(mean NLL) by one forward pass of the model."""
    logits = model(input_ids, attention_mask=mask).logits[:, :-1].double()
    losses = F.cross_entropy(logits.transpose(1, 2), input_ids[:, 1:], reduction="none")
    seen = torch.ones_like(losses) if mask is None else (mask[:, 1:] * mask[:, :-1]).double()
    return math.exp(float((losses * seen).sum() / seen.sum()))


def naive_scores(model, input_ids, mask=None):
    """The perplexity of the whole model, then without each of its layers."""
    values = [naive_perplexity(model, input_ids, mask)]
    for index in range(len(layers_of(model))):
        with without_layers(model, index):
            values.append(naive_perplexity(model, input_ids, mask))
    return values


def smallest_router_margin(model, input_ids, mask, chosen):
    """How far apart, at least, the last expert that a token goes to and the first that it does not go to are in a
    router's logits: in the whole model and without each of its layers."""
    margins = []

    def note(module, args):
        ranked = F.linear(args[0].flatten(0, -2), module.weight).sort(-1, descending=True).values
        margins.append(float((ranked[:, chosen - 1] - ranked[:, chosen]).min()))

    routers = [module for name, module in model.named_modules() if name.endswith((".gate", ".router"))]
    hooks = [router.register_forward_pre_hook(note) for router in routers]
    try:
        naive_scores(model, input_ids, mask)
    finally:
        for hook in hooks:
            hook.remove()
    assert routers
    assert len(margins) >= len(routers)
    return min(margins)
