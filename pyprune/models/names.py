"""Names of a decoder's tensors: its own ("blocks.3.mha.q.weight"), Hugging Face's and llama.cpp's."""

from __future__ import annotations

# Hugging Face's names of a Decoder's parts: all families that descend from Llama share them.
_HF_TOP = {"embedding": "model.embed_tokens.weight", "norm": "model.norm.weight", "head.weight": "lm_head.weight"}
_HF_BLOCK = {
    "mha.norm": "input_layernorm.weight",
    "mha.q": "self_attn.q_proj",
    "mha.k": "self_attn.k_proj",
    "mha.v": "self_attn.v_proj",
    "mha.o": "self_attn.o_proj",
    "mha.q_norm": "self_attn.q_norm.weight",
    "mha.k_norm": "self_attn.k_norm.weight",
    "ffn.norm": "post_attention_layernorm.weight",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
}
# llama.cpp's names of the same parts.
_GGUF_TOP = {"embedding": "token_embd.weight", "norm": "output_norm.weight", "head.weight": "output.weight"}
_GGUF_BLOCK = {
    "mha.norm": "attn_norm.weight",
    "mha.q": "attn_q",
    "mha.k": "attn_k",
    "mha.v": "attn_v",
    "mha.o": "attn_output",
    "mha.q_norm": "attn_q_norm.weight",
    "mha.k_norm": "attn_k_norm.weight",
    "ffn.norm": "ffn_norm.weight",
    "ffn.gate": "ffn_gate",
    "ffn.up": "ffn_up",
    "ffn.down": "ffn_down",
}


def hf_name(part: str) -> str:
    """Hugging Face's name of a Decoder's part: "blocks.3.mha.q.weight" is "model.layers.3.self_attn.q_proj.weight"."""
    return _rename(part, _HF_TOP, _HF_BLOCK, "model.layers")


def gguf_name(part: str) -> str:
    """llama.cpp's name of a Decoder's part: "blocks.3.mha.q.weight" is "blk.3.attn_q.weight"."""
    return _rename(part, _GGUF_TOP, _GGUF_BLOCK, "blk")


def _rename(part: str, top: dict[str, str], block: dict[str, str], prefix: str) -> str:
    if part in top:
        return top[part]
    _, position, inner = part.split(".", 2)
    if inner in block:
        return f"{prefix}.{position}.{block[inner]}"
    inner, kind = inner.rsplit(".", 1)
    return f"{prefix}.{position}.{block[inner]}.{kind}"
