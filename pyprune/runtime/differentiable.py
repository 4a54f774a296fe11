"""Gradients of the loss with respect to a decoder's weights, its channels and its residual stream.

The operators have no gradients, so this forward is plain PyTorch. Every block is computed twice: on the way forward
only the residual stream between blocks is kept, on the way back one block at a time is run again and differentiated
(activation checkpointing, Chen et al. 2016). So memory holds the states of one batch and the gradients of one block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pyprune.models.decoder import FFN, MHA, Block, Decoder, Linear
from pyprune.models.transformers_decoder import LayerBlock
from pyprune.ops.reference import rms_norm, rotate
from pyprune.runtime.sequence import visible

HEAD_ROWS = 128
"""Rows whose logits are in memory together."""

BATCH_TOKENS = 512
"""Tokens that go backward together where sums over samples are wanted: enough for GEMM, few against the weights."""


@dataclass(frozen=True)
class BlockGradients:
    """What one backward pass says about one block.

    `states`: the residual stream x `[N, T, hidden]` before the MHA, between the two, and after the FFN; `slopes`:
    dL/dx at the same three places. A missing sublayer changes neither.
    `weights`: dL/dW under the names of `Block.tensors()` ("mha.q.weight"), of those that require one.
    `channels`: the sum over the tokens of each sample of x_j * dL/dx_j at the inputs of o ("mha",
    `[N, heads*head_dim]`) and of down ("ffn", `[N, width]`): the slope of the loss in a gate of 1 on each channel.
    """

    block: Block | LayerBlock
    states: tuple[Tensor, Tensor, Tensor]
    slopes: tuple[Tensor, Tensor, Tensor]
    weights: dict[str, Tensor]
    channels: dict[str, Tensor]


def loss(decoder: Decoder, input_ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean negative log-likelihood over all predicted positions of `input_ids [N, T]`, T >= 2: a scalar, differentiable
    in every tensor of `decoder` that requires a gradient.

    mask: bool `[N, T]`, False where a token is padding. Blocks, and the logits of some rows at a time, are computed
    again in the backward pass, so memory holds one block's activations.
    """
    x, targets, cos, sin = _start(decoder, input_ids, mask)

    def run(block: Block, x: Tensor) -> Tensor:
        return run_block(_mapped(block, lambda _, tensor: tensor.to(x.dtype)), x, cos, sin, decoder.eps, mask)

    for block in decoder.blocks:
        x = checkpoint(run, block, x, use_reentrant=False)
    rows, targets = x[:, :-1].reshape(-1, decoder.hidden_size), targets.reshape(-1)
    total = x.new_zeros(())
    for part, target in zip(rows.split(HEAD_ROWS), targets.split(HEAD_ROWS), strict=True):
        total = total + checkpoint(_negative_log_likelihood, decoder, part, target, use_reentrant=False)
    return total / (targets != -100).sum()


def block_gradients(
    decoder: Decoder,
    input_ids: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float = 1.0,
    requires_grad: Callable[[str], bool] = lambda name: True,
) -> Iterator[BlockGradients]:
    """Gradients of `scale` * (negative log-likelihood summed over all predicted positions), last block first.

    `input_ids [N, T]`, T >= 2; mask as in `loss`. Gradients of several batches add up to those of all their samples; a
    `scale` of 1 / (predicted positions of all batches) makes them those of the mean loss. `requires_grad`: whether the
    weight of a name, as in `Block.tensors()`, gets a gradient; channels always do. Gradients are float32 (float64 for
    float64 weights) whatever the weights' dtype; the decoder is left as it is. Memory: a state `[N, T, hidden]` a
    block, and one block's weights, gradients and activations.
    """
    with torch.no_grad():
        x, targets, cos, sin = _start(decoder, input_ids, mask)
        states = [x]
        for block in decoder.blocks:
            wide = _mapped(block, lambda _, tensor: tensor.to(x.dtype))
            states.append(run_block(wide, states[-1], cos, sin, decoder.eps, mask))
    slope = _final_slope(decoder, states.pop(), targets, scale)
    for block in reversed(decoder.blocks):
        gradients = _backward(block, states.pop(), slope, cos, sin, decoder.eps, mask, requires_grad)
        slope = gradients.slopes[0]
        yield gradients


def run_block(block: Block, x: Tensor, cos: Tensor, sin: Tensor, eps: float, mask: Tensor | None = None) -> Tensor:
    """One block, whichever sublayers it has, as `runtime.sequence.run_block` but differentiable."""
    if block.mha is not None:
        x = x + _linear(attention_context(block.mha, x, cos, sin, eps, mask), block.mha.o)
    return x if block.ffn is None else x + _linear(ffn_activation(block.ffn, x, eps), block.ffn.down)


def attention_context(mha: MHA, x: Tensor, cos: Tensor, sin: Tensor, eps: float, mask: Tensor | None = None) -> Tensor:
    """Input of the output projection, as `runtime.sequence.attention_context` but differentiable."""
    batch, tokens, _ = x.shape
    h = rms_norm(x, mha.norm, eps)
    q, k, v = (_linear(h, part).view(batch, tokens, -1, mha.head_dim) for part in (mha.q, mha.k, mha.v))
    if mha.q_norm is not None:
        q = rms_norm(q, mha.q_norm, eps)
    if mha.k_norm is not None:
        k = rms_norm(k, mha.k_norm, eps)
    cos, sin = cos[:tokens].unsqueeze(1), sin[:tokens].unsqueeze(1)
    q, k, v = (part.transpose(1, 2) for part in (rotate(q, cos, sin), rotate(k, cos, sin), v))
    seen = visible(tokens, mha.window, mask, x.device)
    context = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=seen is None, enable_gqa=mha.group > 1)
    return context.transpose(1, 2).reshape(batch, tokens, mha.heads * mha.head_dim)


def ffn_activation(ffn: FFN, x: Tensor, eps: float) -> Tensor:
    """Input of the down projection, as `runtime.sequence.ffn_activation` but differentiable."""
    h = rms_norm(x, ffn.norm, eps)
    return F.silu(_linear(h, ffn.gate)) * _linear(h, ffn.up)


def _start(decoder: Decoder, input_ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """First state, targets `[N, T-1]` (-100 where nothing is predicted), and the rotation's cosine and sine."""
    ids = input_ids.to(decoder.device, torch.int64)
    tokens = ids.shape[1]
    targets = ids[:, 1:]
    if mask is not None:
        targets = targets.masked_fill(~(mask[:, 1:] & mask[:, :-1]).to(ids.device), -100)
    x = F.embedding(ids, decoder.embedding).to(_wide(decoder.dtype))
    return x, targets, *decoder.rope.tables(tokens, prompt=tokens)


def _final_slope(decoder: Decoder, x: Tensor, targets: Tensor, scale: float) -> Tensor:
    """dL/dx of the state behind the last block: (softmax(logits) - onehot(target)) W, through the final norm."""
    slope = torch.zeros_like(x)
    norm, weight = decoder.norm.detach().to(x.dtype), decoder.head.weight.detach().to(x.dtype)
    bias = None if decoder.head.bias is None else decoder.head.bias.detach().to(x.dtype)
    for sample, target, into in zip(x[:, :-1], targets, slope[:, :-1], strict=True):
        for start in range(0, len(target), HEAD_ROWS):
            part = slice(start, start + HEAD_ROWS)
            with torch.enable_grad():
                rows = sample[part].detach().requires_grad_()
                h = rms_norm(rows, norm, decoder.eps)
            with torch.no_grad():
                predicted = (target[part] != -100).unsqueeze(1)
                error = F.linear(h, weight, bias).softmax(-1)
                error.scatter_add_(
                    1, target[part].unsqueeze(1).clamp(min=0), -torch.ones_like(predicted, dtype=x.dtype)
                )
                error.mul_(predicted * scale)
            into[part] = torch.autograd.grad(h, rows, error @ weight)[0]
    return slope


def _backward(
    block: Block, x: Tensor, slope: Tensor, cos: Tensor, sin: Tensor, eps: float, mask: Tensor | None,
    requires_grad: Callable[[str], bool],
) -> BlockGradients:  # fmt: skip

    def leaf(name: str, tensor: Tensor) -> Tensor:
        return tensor.detach().to(x.dtype).requires_grad_(requires_grad(name))

    wide = _mapped(block, leaf)
    weights: dict[str, Tensor] = {}
    channels: dict[str, Tensor] = {}

    def back(sublayer: str, inputs: Tensor, context: Tensor, output: Tensor, slope: Tensor) -> Tensor:
        """dL/d(inputs) of one sublayer; its weights' and channels' gradients are noted."""
        names, leaves = [], []
        for name, tensor in getattr(wide, sublayer).tensors():
            if tensor.requires_grad:
                names.append(f"{sublayer}.{name}")
                leaves.append(tensor)
        below, gate, *gradients = torch.autograd.grad(output, [inputs, context, *leaves], slope)
        weights.update(zip(names, gradients, strict=True))
        channels[sublayer] = (context.detach() * gate).sum(1)
        return below

    with torch.enable_grad():
        start = middle = x.detach().requires_grad_()
        if wide.mha is not None:
            context = attention_context(wide.mha, start, cos, sin, eps, mask)
            after = start + _linear(context, wide.mha.o)
            middle = after.detach().requires_grad_()
        end = middle
        if wide.ffn is not None:
            activation = ffn_activation(wide.ffn, middle, eps)
            end = middle + _linear(activation, wide.ffn.down)
    between = slope if wide.ffn is None else back("ffn", middle, activation, end, slope)
    first = between if wide.mha is None else back("mha", start, context, after, between)
    states = (start.detach(), middle.detach(), end.detach())
    return BlockGradients(block, states, (first, between, slope), weights, channels)


def _negative_log_likelihood(decoder: Decoder, rows: Tensor, targets: Tensor) -> Tensor:
    """Summed over rows `[R, hidden]`, final norm and head included."""
    bias = None if decoder.head.bias is None else decoder.head.bias.to(rows.dtype)
    logits = F.linear(
        rms_norm(rows, decoder.norm.to(rows.dtype), decoder.eps), decoder.head.weight.to(rows.dtype), bias
    )
    return F.cross_entropy(logits, targets, reduction="sum", ignore_index=-100)


def _linear(x: Tensor, linear: Linear) -> Tensor:
    return F.linear(x, linear.weight, linear.bias)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _mapped(block: Block, change: Callable[[str, Tensor], Tensor]) -> Block:
    """The block with `change(name, tensor)`, names as in `Block.tensors()`, in each tensor's place."""
    new = {name: change(name, tensor) for name, tensor in block.tensors()}

    def mapped(name: str, sublayer: MHA | FFN | None, linears: tuple[str, ...], vectors: tuple[str, ...]) -> Any:
        if sublayer is None:
            return None
        parts: dict[str, Any]  # by the names of the sublayer's fields
        parts = {key: Linear(new[f"{name}.{key}.weight"], new.get(f"{name}.{key}.bias")) for key in linears}
        parts |= {key: new.get(f"{name}.{key}") for key in vectors}
        return replace(sublayer, **parts)

    mha = mapped("mha", block.mha, ("q", "k", "v", "o"), ("norm", "q_norm", "k_norm"))
    return Block(block.index, mha, mapped("ffn", block.ffn, ("gate", "up", "down"), ("norm",)))
