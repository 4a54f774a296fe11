"""Each operator in plain PyTorch: what tests compare with, and what runs where nothing faster can.

Written to be read. float64 inputs are computed in float64 throughout; any other dtype as Hugging Face's Llama computes
it: norms and rotations in float32, products in the weights' dtype.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pyprune.ops.checks import described, expect
from pyprune.ops.compressed_bf16 import compress_bfloat16, decompress_bfloat16
from pyprune.ops.registration import LIBRARY
from pyprune.ops.schemas import LAYOUT
from pyprune.ops.weight_formats import plain


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def rms_norm(x: Tensor, norm: Tensor, eps: float) -> Tensor:
    """norm * x / sqrt(mean(x^2) + eps) over the last dimension, in the dtype of `norm`."""
    wide = x.to(_wide(norm.dtype))
    return norm * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(norm.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on the last dimension of x [..., D]: pairs (i, i + D/2) are turned; cos and sin are [..., D/2]."""
    a, b = x.to(_wide(x.dtype)).chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def dequantize_gguf(blocks: Tensor, type: int, out: Tensor) -> None:
    """By the `gguf` package, in NumPy. NotImplementedError for a type that it does not dequantise."""
    import gguf

    try:
        kind = gguf.GGMLQuantizationType(type)
        values, size = gguf.GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise RuntimeError(f"type: {type} is not one that gguf knows") from None
    row = out.shape[-1] if out.dim() else 1
    expect(
        blocks.device.type == "cpu" and blocks.dtype == torch.uint8 and blocks.is_contiguous(),
        f"blocks: contiguous bytes (uint8) on a CPU are expected, not {described(blocks)}",
    )
    expect(row % values == 0, f"out: rows of whole blocks of {values} values are expected, not {row} values")
    wanted = out.numel() // values * size
    expect(
        blocks.numel() == wanted,
        f"blocks: {wanted} bytes for {out.numel()} values are expected, not {blocks.numel()}",
    )
    if not out.numel():
        return
    with np.errstate(all="ignore"):  # NaN and infinity are the caller's to find
        floats = gguf.dequantize(blocks.numpy().reshape(-1, row // values * size), kind)
    out.copy_(torch.from_numpy(np.ascontiguousarray(floats)).view(out.shape))


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    weight = plain(weight, x.shape[-1])
    expect(weight.dim() == 2 and weight.shape[1] == x.shape[-1], f"weight: a matrix [*, {x.shape[-1]}] is expected")
    expect(bias is None or bias.shape == weight.shape[:1], f"bias: a vector of {weight.shape[0]} values is expected")
    return F.linear(x.to(weight.dtype), weight, None if bias is None else bias.to(weight.dtype))


def _skipped(skip: Tensor | None, unit: int) -> bool:
    if skip is None:
        return False
    expect(skip.dtype == torch.bool and skip.dim() == 1, "skip: a bool vector is expected")
    expect(0 <= unit < skip.shape[0], f"unit: {unit} is outside the skip mask of {skip.shape[0]}")
    return bool(skip[unit])


def _check_places(name: str, places: Tensor, shape: tuple[int, ...], limit: int) -> None:
    expect(
        places.dtype == torch.int64 and tuple(places.shape) == shape,
        f"{name}: an int64 tensor [batch{', tokens' if len(shape) == 2 else ''}] is expected",
    )
    if places.numel():
        low, high = int(places.min()), int(places.max())
        worst = low if low < 0 else high
        expect(0 <= worst < limit, f"{name}: {worst} is outside [0, {limit})")


def norm_qkv_rope(
    x: Tensor, norm: Tensor, eps: float, q_weight: Tensor, k_weight: Tensor, v_weight: Tensor,
    q_bias: Tensor | None, k_bias: Tensor | None, v_bias: Tensor | None, q_norm: Tensor | None, k_norm: Tensor | None,
    cos: Tensor, sin: Tensor, positions: Tensor, k_cache: Tensor, v_cache: Tensor,
    skip: Tensor | None = None, unit: int = 0, slots: Tensor | None = None,
) -> Tensor:  # fmt: skip
    batch, tokens, _ = x.shape
    head_dim, rows = k_cache.shape[3], k_cache.shape[2]
    _check_places("positions", positions, (batch, tokens), len(cos) if slots is not None else min(rows, len(cos)))
    if slots is None:
        slots = positions
    else:
        _check_places("slots", slots, (batch, tokens), rows)
    if _skipped(skip, unit):
        return x.new_zeros(batch, tokens, q_weight.shape[0] // head_dim, head_dim)
    h = rms_norm(x, norm, eps)
    q = _linear(h, q_weight, q_bias).view(batch, tokens, -1, head_dim)
    k = _linear(h, k_weight, k_bias).view(batch, tokens, -1, head_dim)
    v = _linear(h, v_weight, v_bias).view(batch, tokens, -1, head_dim)
    if q_norm is not None:
        q = rms_norm(q, q_norm, eps)
    if k_norm is not None:
        k = rms_norm(k, k_norm, eps)
    cos, sin = cos[positions].unsqueeze(2), sin[positions].unsqueeze(2)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    row = torch.arange(batch, device=x.device).unsqueeze(1)
    k_cache[row, :, slots] = k.to(k_cache.dtype)
    v_cache[row, :, slots] = v.to(v_cache.dtype)
    return q.to(x.dtype)


def decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    positions: Tensor,
    scale: float,
    skip: Tensor | None = None,
    unit: int = 0,
    first: Tensor | None = None,
    window: int = 0,
) -> Tensor:
    batch, tokens, heads, _ = q.shape
    _check_places("positions", positions, (batch, tokens), k_cache.shape[2])
    if first is not None:
        _check_places("first", first, (batch,), k_cache.shape[2])
    expect(window >= 0, f"window: {window} given; 0 (none) or a positive number is expected")
    if _skipped(skip, unit):
        return q.new_zeros(q.shape)
    group = heads // k_cache.shape[1]
    length = int(positions.max()) + 1 if positions.numel() else 0
    k = k_cache[:batch, :, :length].repeat_interleave(group, dim=1)
    v = v_cache[:batch, :, :length].repeat_interleave(group, dim=1)
    row, own = torch.arange(length, device=q.device), positions.unsqueeze(-1)
    seen = row <= own
    if window:
        seen &= row > own - window
    if first is not None:
        seen &= row >= first[:, None, None]
    seen |= row == own
    v = v.masked_fill(~seen.any(1)[:, None, :, None], 0)  # an unseen row may hold NaN, which weight 0 does not silence
    scores = torch.matmul(q.transpose(1, 2).to(k.dtype), k.transpose(2, 3)) * scale
    scores = scores.masked_fill(~seen.unsqueeze(1), float("-inf"))
    weights = torch.softmax(scores.to(_wide(k.dtype)), dim=-1).to(v.dtype)
    return torch.matmul(weights, v).transpose(1, 2).to(q.dtype).contiguous()


def linear_residual(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, skip: Tensor | None = None, unit: int = 0
) -> Tensor:
    expect(
        residual.shape == (*x.shape[:-1], weight.shape[0]),
        "residual: the rows of x and one column for each row of weight are expected",
    )
    if _skipped(skip, unit):
        return residual.clone(memory_format=torch.contiguous_format)
    return residual.contiguous() + _linear(x, weight, bias).to(residual.dtype)


def norm_gate_up(
    x: Tensor, norm: Tensor, eps: float, gate: Tensor, up: Tensor, gate_bias: Tensor | None, up_bias: Tensor | None,
    skip: Tensor | None = None, unit: int = 0,
) -> Tensor:  # fmt: skip
    if _skipped(skip, unit):
        return x.new_zeros(*x.shape[:-1], gate.shape[0])
    h = rms_norm(x, norm, eps)
    return (F.silu(_linear(h, gate, gate_bias)) * _linear(h, up, up_bias)).to(x.dtype)


def norm_head(x: Tensor, norm: Tensor, eps: float, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return _linear(rms_norm(x, norm, eps), weight, bias).to(_wide(x.dtype))


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, norm: Tensor | None = None, eps: float = 0.0,
    bias: Tensor | None = None, ignore_index: int = -100,
) -> Tensor:  # fmt: skip
    h = x if norm is None else rms_norm(x, norm, eps)
    h, flat = h.reshape(-1, h.shape[-1]), targets.reshape(-1)
    vocab = weight.shape[0]
    bad = flat[(flat != ignore_index) & ((flat < 0) | (flat >= vocab))]
    expect(bad.numel() == 0, f"targets: {bad[:1].tolist()} is outside [0, {vocab})")
    wide = _wide(x.dtype)
    losses = [  # some rows at a time: even here the logits never exist as a whole
        F.cross_entropy(_linear(part, weight, bias).to(wide), target, reduction="none", ignore_index=ignore_index)
        for part, target in zip(h.split(256), flat.split(256), strict=True)
    ]
    return (torch.cat(losses) if losses else x.new_zeros(0, dtype=wide)).view(targets.shape)


def padded_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return _linear(x, weight, bias).to(x.dtype)


def decode_step(
    tokens: Tensor, positions: Tensor, embedding: Tensor, weights: list[Tensor], layout: list[int],
    caches: list[Tensor], norm: Tensor, eps: float, head: Tensor, head_bias: Tensor | None, cos: Tensor, sin: Tensor,
    skip: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Every stage by its own operator, so that this is the whole step wherever those have kernels."""
    expect(
        tokens.dim() == 1 and 1 <= len(tokens) <= 64, f"tokens: 1 to 64 are expected, not shape {list(tokens.shape)}"
    )
    _check_places("tokens", tokens, (len(tokens),), len(embedding))
    expect(len(layout) % len(LAYOUT) == 0, f"layout: {len(LAYOUT)} numbers a block are expected")
    blocks = len(layout) // len(LAYOUT)
    for name, place in zip(LAYOUT * blocks, layout, strict=True):
        good = place >= 0 if name == "window" else -1 <= place < len(weights)
        expect(good, f"layout: {place} is no place in weights")
    wanted = 2 * sum(place >= 0 for place in layout[:: len(LAYOUT)])
    expect(len(caches) == wanted, f"caches: {wanted} are expected, not {len(caches)}")
    expect(skip is None or tuple(skip.shape) == (2 * blocks,), f"skip: a bool vector of {2 * blocks} is expected")
    places, cached, run = positions.unsqueeze(1), iter(caches), torch.ops.pyprune
    x = plain(embedding[tokens], len(norm)).to(_wide(embedding.dtype)).unsqueeze(1)
    for unit in range(0, 2 * blocks, 2):
        start = unit // 2 * len(LAYOUT)
        part = dict(zip(LAYOUT, layout[start : start + len(LAYOUT)], strict=True))
        window = part.pop("window")
        w = {name: None if place < 0 else weights[place] for name, place in part.items()}
        if w["mha_norm"] is not None:
            keys, values = next(cached), next(cached)
            q = run.norm_qkv_rope(
                x, w["mha_norm"], eps, w["q"], w["k"], w["v"], w["q_bias"], w["k_bias"], w["v_bias"], w["q_norm"],
                w["k_norm"], cos, sin, places, keys, values, skip, unit,
            )  # fmt: skip
            context = run.decode_attention(q, keys, values, places, q.shape[3] ** -0.5, skip, unit, None, window)
            x = run.linear_residual(context.flatten(2), w["o"], w["o_bias"], x, skip, unit)
        if w["ffn_norm"] is not None:
            a = run.norm_gate_up(
                x, w["ffn_norm"], eps, w["gate"], w["up"], w["gate_bias"], w["up_bias"], skip, unit + 1
            )
            x = run.linear_residual(a, w["down"], w["down_bias"], x, skip, unit + 1)
    return run.norm_head(x.squeeze(1), norm, eps, head, head_bias)


REFERENCE = {
    "norm_qkv_rope": norm_qkv_rope,
    "decode_attention": decode_attention,
    "linear_residual": linear_residual,
    "norm_gate_up": norm_gate_up,
    "norm_head": norm_head,
    "linear_cross_entropy": linear_cross_entropy,
    "padded_linear": padded_linear,
    "compress_bfloat16": compress_bfloat16,
    "decompress_bfloat16": decompress_bfloat16,
    "dequantize_gguf": dequantize_gguf,
    "decode_step": decode_step,
}
for _name, _function in REFERENCE.items():
    # Runs on every backend for which no kernel is registered.
    LIBRARY.impl(_name, _function, "CompositeExplicitAutograd")
