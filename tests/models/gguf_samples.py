"""Tensors of small models under the names that llama.cpp gives them."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from tests import seeds

GGUF_SIZES = {"hidden": 64, "ffn": 96, "blocks": 2, "heads": 4, "kv_heads": 2, "vocab": 32}
"""Rows of 64 and 96: multiples of the 32 values that a block of Q4_0, Q4_1 and Q8_0 holds."""


def gguf_tensors(sizes, tied=True, biases="", qk_norm=False):
    """Random float32 tensors of a Llama under llama.cpp's names; `biases`: names of attention projections. Heads are
    of `sizes["head_dim"]` where that is given."""
    random = np.random.default_rng(seeds.seed(11))
    hidden, ffn = sizes["hidden"], sizes["ffn"]
    head_dim = sizes.get("head_dim", hidden // sizes["heads"])
    q, kv = head_dim * sizes["heads"], head_dim * sizes["kv_heads"]
    shapes = {"token_embd.weight": (sizes["vocab"], hidden), "output_norm.weight": (hidden,)}
    if not tied:
        shapes["output.weight"] = (sizes["vocab"], hidden)
    for block in range(sizes["blocks"]):
        parts = {
            "attn_norm.weight": (hidden,),
            "attn_q.weight": (q, hidden),
            "attn_k.weight": (kv, hidden),
            "attn_v.weight": (kv, hidden),
            "attn_output.weight": (hidden, q),
            "ffn_norm.weight": (hidden,),
            "ffn_gate.weight": (ffn, hidden),
            "ffn_up.weight": (ffn, hidden),
            "ffn_down.weight": (hidden, ffn),
        }
        rows = {"q": q, "k": kv, "v": kv, "output": hidden}
        parts |= {f"attn_{name}.bias": (rows[name],) for name in biases.split()}
        if qk_norm:
            parts |= {"attn_q_norm.weight": (head_dim,), "attn_k_norm.weight": (head_dim,)}
        shapes |= {f"blk.{block}.{name}": shape for name, shape in parts.items()}
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def rotary_halves(rows: Tensor, heads: int) -> Tensor:
    """Rows of q or k from llama.cpp's order (the two that rotate together are neighbours) to Hugging Face's."""
    pairs = rows.view(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return pairs.transpose(1, 2).reshape(rows.shape)
