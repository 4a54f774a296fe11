"""A decoder as a plain transformers model: the peer in comparisons and the reference in tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.models.decoder import Block, Decoder
from pyprune.models.families import family_of
from pyprune.models.families.family import hf_name, transformers_config, windows_of


def to_transformers(decoder: Decoder, attn_implementation: str = "sdpa") -> Any:
    """A transformers PreTrainedModel in eval mode whose parameters are the decoder's own tensors.

    A uniform decoder becomes the model that its saved checkpoint loads as. In one that is not, each block gets its own
    sizes and a missing half adds nothing; a block without attention lends its KV cache entry to the next one that has
    it, so that `generate` works. Such a model is for running only: its configuration cannot describe it. InputError for
    windows that the family does not have.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    family = family_of(decoder.config["model_type"], decoder.name)
    try:
        plain = family.plain_config(decoder)
    except InputError:
        plain = {**decoder.config, "num_hidden_layers": len(decoder.blocks), "tie_word_embeddings": decoder.tied}
        plain = family.windowed_config(plain, windows_of(decoder.blocks))
    config = transformers_config(plain, decoder.name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation, dtype=decoder.dtype)
    entry = 0  # of the KV cache, whose first must hold something: transformers asks it for the length
    for position, block in enumerate(decoder.blocks):
        layer = model.model.layers[position]
        _fit(layer, block)
        if block.mha is not None:
            layer.self_attn.layer_idx = entry
            entry = position + 1
    for part, tensor in decoder.tensors():
        owner, _, kind = hf_name(part).rpartition(".")
        _assign(model.get_submodule(owner), kind, tensor)
    if decoder.tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    # Its frequencies are buffers that no checkpoint holds: made anew, off the meta device.
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(decoder.device)
    if decoder.generation_config is not None:
        model.generation_config = GenerationConfig.from_dict(decoder.generation_config)
    return model.eval()


class _NoAttention(nn.Module):
    """Attention that was removed: zeros for the residual stream."""

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        return torch.zeros_like(hidden_states), None


class _NoFFN(nn.Module):
    """An FFN that was removed: zeros for the residual stream."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return torch.zeros_like(hidden_states)


def _fit(layer: nn.Module, block: Block) -> None:
    """Give a layer built from the model's common sizes those of its block."""
    if block.mha is None:
        layer.self_attn, layer.input_layernorm = _NoAttention(), nn.Identity()
    else:
        layer.self_attn.head_dim = block.mha.head_dim
        layer.self_attn.num_key_value_groups = block.mha.group
        layer.self_attn.scaling = block.mha.head_dim**-0.5
    if block.ffn is None:
        layer.mlp, layer.post_attention_layernorm = _NoFFN(), nn.Identity()
    else:
        layer.mlp.intermediate_size = block.ffn.width
    for module in layer.modules():
        if isinstance(module, nn.Linear):
            module.bias = None  # where the block has one, it is assigned with the tensors


def _assign(module: nn.Module, kind: str, tensor: Tensor) -> None:
    setattr(module, kind, nn.Parameter(tensor.detach()))
    if isinstance(module, nn.Linear) and kind == "weight":
        module.out_features, module.in_features = tensor.shape
