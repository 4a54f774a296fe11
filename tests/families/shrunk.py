"""A small configuration of any family of transformers, from its defaults and the names of its fields."""

from __future__ import annotations

from typing import Any

LAYERS, VOCAB = 4, 99
_SMALL = {
    "vocab": VOCAB,
    "positions": 128,
    "hidden": 64,
    "inner": 48,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 16,
    "experts": 4,
    "chosen": 2,
}
_NAMES = {
    "vocab": "vocab_size",
    "positions": "max_position_embeddings n_positions n_ctx max_seq_len seq_length max_sequence_length",
    "hidden": "hidden_size d_model n_embd embed_dim word_embed_proj_dim dim embedding_size input_embedding_size "
    "model_dim hidden_dim lru_width",
    "inner": "intermediate_size n_inner ffn_dim d_ff dim_ff decoder_ffn_dim encoder_ffn_dim ffn_hidden_size "
    "moe_intermediate_size shared_expert_intermediate_size moe_ffn_hidden_size expert_ffn_hidden_size "
    "shared_intermediate_size intermediate_size_mlp mlp_hidden_size feed_forward_proj_size "
    "moe_shared_expert_intermediate_size",
    "heads": "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads",
    "kv_heads": "num_key_value_heads n_kv_heads num_kv_heads",
    "head_dim": "head_dim attention_head_dim attention_head_size kv_channels v_head_dim qk_nope_head_dim",
    "experts": "num_experts num_local_experts n_routed_experts moe_num_experts num_moe_experts",
    "chosen": "num_experts_per_tok num_experts_per_token moe_topk moe_k top_k moe_top_k num_selected_experts",
}
_SIZE_OF = {name: size for size, names in _NAMES.items() for name in names.split()}
_LAYER_COUNTS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "decoder_layers",
    "encoder_layers",
    "num_decoder_layers",
)
_DIVIDED = ("hidden", "inner", "heads", "kv_heads")


def shrunk(fields: dict[str, Any], way: str, extra: dict[str, Any]) -> dict[str, Any]:
    """A family's default fields made small. way "fixed": sizes by the names of fields; "divided": hidden sizes and
    numbers of heads divided by 8, so that they still fit sizes that no name tells. extra: fields as they are to be."""
    counts = [fields[name] for name in _LAYER_COUNTS if isinstance(fields.get(name), int)]
    layers = counts[0] if counts else None
    small = dict(fields)
    for name, value in fields.items():
        if name == "per_layer_config" and isinstance(value, dict):
            small[name] = {layer: entry for layer, entry in value.items() if int(layer) < LAYERS}
        elif isinstance(value, dict) and ("vocab_size" in value or name == "text_config"):
            small[name] = shrunk(value, way, extra)
        elif name in _LAYER_COUNTS and isinstance(value, int):
            small[name] = LAYERS
        elif isinstance(value, (list, tuple)) and layers is not None and len(value) == layers:
            small[name] = _spread(list(value))
        elif name in _SIZE_OF and isinstance(value, int) and not isinstance(value, bool):
            size = _SIZE_OF[name]
            if way == "divided" and size in _DIVIDED:
                small[name] = max(value // 8, 1)
            elif way == "fixed" or size in ("vocab", "experts", "chosen", "positions"):
                small[name] = min(value, _SMALL[size])
        elif name in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "sep_token_id"):
            small[name] = None if value is None else 2
        elif name in ("n_group", "topk_group"):
            small[name] = 1
        elif "window" in name and isinstance(value, int) and not isinstance(value, bool) and value > 6:
            small[name] = 6
    small.update({name: value for name, value in extra.items() if name in fields})
    return small


def _spread(values: list[Any]) -> list[Any]:
    """LAYERS of the entries, both kinds where there are two."""
    kinds = list(dict.fromkeys(map(str, values)))
    chosen = values[:LAYERS]
    if len(kinds) > 1 and len(set(map(str, chosen))) == 1:
        chosen[-1] = next(value for value in values if str(value) != str(chosen[0]))
    return chosen
