"""A decoder as a transformers model: the peer in comparisons and the reference in tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pyprune.models.decoder import Decoder
from pyprune.models.names import hf_name
from pyprune.models.ragged import checkpoint_config
from pyprune.models.transformers_config import transformers_config


def to_transformers(decoder: Decoder, attn_implementation: str = "sdpa") -> Any:
    """A transformers PreTrainedModel in eval mode whose parameters are the decoder's own tensors.

    It is what the decoder's saved checkpoint loads as, and `save_pretrained` writes it: a plain model where
    transformers can express it, else one of ours (`models.huggingface`), in which a missing sublayer adds nothing.
    InputError for what no configuration can express (`ragged.checkpoint_config`).
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    config = transformers_config(checkpoint_config(decoder), decoder.name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation, dtype=decoder.dtype)
    for part, tensor in decoder.tensors():
        owner, _, kind = hf_name(part).rpartition(".")
        setattr(model.get_submodule(owner), kind, nn.Parameter(tensor.detach()))
    if decoder.tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    # Its frequencies are buffers that no checkpoint holds: made anew, off the meta device.
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(rotary.config).to(decoder.device)
    if decoder.generation_config is not None:
        model.generation_config = GenerationConfig.from_dict(decoder.generation_config)
    return model.eval()
