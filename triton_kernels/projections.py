"""The operators that are a projection with something fused around it. Contracts: pyprune/ops/registration.py.

Up to SKINNY_ROWS rows run fused and stream the weights once (`skinny_linear`). For more, the products are torch's own
GEMM (`gemm`), or `wide_linear` at odd sizes for which no aligned views exist. Results that a projection reads next have
rows that start on 16 bytes at any width (`empty_rows`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune.strides import empty_rows
from pyprune.triton_kernels import checks, rows
from pyprune.triton_kernels.configs import SKINNY_ROWS
from pyprune.triton_kernels.gemm import gemm, takes
from pyprune.triton_kernels.skinny_linear import skinny_linear
from pyprune.triton_kernels.wide_linear import wide_linear


def linear_residual(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, skip: Tensor | None = None, sublayer: int = 0
) -> Tensor:
    """residual [..., O] + x [..., K] weight^T + bias; the residual again where the skip flag is set."""
    flat = checks.activations(x, "x", weight)
    checks.matrix(weight, flat.shape[1], "weight", weight)
    checks.vector(bias, weight.shape[0], "bias", weight)
    base = checks.activations(residual, "residual", weight)
    checks.expect(
        tuple(base.shape) == (flat.shape[0], weight.shape[0]),
        f"residual: [{flat.shape[0]}, {weight.shape[0]}] like the product is expected, not {list(base.shape)}",
    )
    checks.skip_mask(skip, sublayer, x.device)
    base, out = base.contiguous(), torch.empty(residual.shape, dtype=residual.dtype, device=residual.device)
    if flat.shape[0] <= SKINNY_ROWS:
        skinny_linear("linear_residual", flat, weight, bias, out, residual=base, skip=skip, sublayer=sublayer)
    elif takes(weight):
        rows.add_residual(gemm(flat, weight, bias).contiguous(), base, out, skip, sublayer)
    else:
        wide_linear(flat, weight, bias, out, residual=base, skip=skip, sublayer=sublayer)
    return out


def norm_gate_up(
    x: Tensor, norm: Tensor, eps: float, gate: Tensor, up: Tensor, gate_bias: Tensor | None, up_bias: Tensor | None,
    skip: Tensor | None = None, sublayer: int = 0,
) -> Tensor:  # fmt: skip
    """silu(h gate^T + gate_bias) * (h up^T + up_bias), h = RMSNorm(x [..., H]); zeros where the skip flag is set."""
    flat = checks.activations(x, "x", gate)
    checks.vector(norm, flat.shape[1], "norm", gate)
    checks.matrix(gate, flat.shape[1], "gate", gate)
    checks.matrix(up, flat.shape[1], "up", gate, gate.dtype)
    checks.expect(up.shape == gate.shape, f"up: {list(gate.shape)} like gate is expected, not {list(up.shape)}")
    checks.vector(gate_bias, gate.shape[0], "gate_bias", gate)
    checks.vector(up_bias, gate.shape[0], "up_bias", gate)
    checks.skip_mask(skip, sublayer, x.device)
    out = empty_rows(*x.shape[:-1], gate.shape[0], dtype=x.dtype, device=x.device)
    if flat.shape[0] <= SKINNY_ROWS:
        skinny_linear("norm_gate_up", flat, gate, gate_bias, out, norm, eps, up, up_bias, skip=skip, sublayer=sublayer)
    else:
        h = rows.rms_norm(flat, norm, eps, gate.dtype)
        if takes(gate, padded_result=True) and takes(up, padded_result=True):
            products = gemm(h, gate, gate_bias), gemm(h, up, up_bias)
            rows.silu_product(*products, out.view(flat.shape[0], gate.shape[0]), skip, sublayer)
        else:
            wide_linear(h, gate, gate_bias, out, up, up_bias, skip=skip, sublayer=sublayer)
    return out


def norm_head(x: Tensor, norm: Tensor, eps: float, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """RMSNorm(x [..., H]) weight^T + bias as float32 logits [..., V]."""
    flat = checks.activations(x, "x", weight)
    checks.vector(norm, flat.shape[1], "norm", weight)
    checks.matrix(weight, flat.shape[1], "weight", weight)
    checks.vector(bias, weight.shape[0], "bias", weight)
    shape = (*x.shape[:-1], weight.shape[0])
    if flat.shape[0] > SKINNY_ROWS:
        logits = gemm(rows.rms_norm(flat, norm, eps, weight.dtype), weight, bias)
        return logits.float().contiguous().view(shape)
    out = torch.empty(shape, dtype=torch.float32, device=x.device)
    return skinny_linear("norm_head", flat, weight, bias, out, norm, eps)


def padded_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., K] weight^T + bias for any K and O."""
    flat = checks.activations(x, "x", weight)
    checks.matrix(weight, flat.shape[1], "weight", weight)
    checks.vector(bias, weight.shape[0], "bias", weight)
    shape = (*x.shape[:-1], weight.shape[0])
    if flat.shape[0] > SKINNY_ROWS and takes(weight):
        return gemm(flat, weight, bias).to(x.dtype).contiguous().view(shape)
    out = torch.empty(shape, dtype=x.dtype, device=x.device)
    if flat.shape[0] > SKINNY_ROWS:
        return wide_linear(flat, weight, bias, out)
    return skinny_linear("padded_linear", flat, weight, bias, out)
