"""A linear of any width. The one operator with a gradient.

x [..., K] weight^T [O, K] + bias [O], any K and O. Gives [..., O].
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyprune.ops.formulas import linear
from pyprune.ops.specification import Gradient, Operator
from pyprune.ops.weight_formats import format_of

SCHEMA = "(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor"


def reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return linear(x, weight, bias).to(x.dtype)


def fake(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _keep_for_gradients(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    x, weight, bias = inputs
    if (stored_as := format_of(weight)) is not None:
        raise RuntimeError(f"padded_linear: a {stored_as.name} weight has no gradient: call it under torch.no_grad()")
    ctx.save_for_backward(x, weight)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias: the reference's, by torch's GEMM in the weights' dtype."""
    x, weight = ctx.saved_tensors
    # The dispatcher drops a bias that is absent, and its place in `needs_input_grad` with it.
    (out, inner), count, needed = weight.shape, x.shape[:-1].numel(), ctx.needs_input_grad
    rows = gradient.reshape(count, out)
    low = rows.to(weight.dtype)
    return (
        (low @ weight).to(x.dtype).view(x.shape) if needed[0] else None,
        low.T @ x.reshape(count, inner).to(weight.dtype) if needed[1] else None,
        rows.sum(0).to(ctx.bias_dtype) if needed[2:] == (True,) else None,
    )


OPERATOR = Operator(SCHEMA, fake, reference, kernels=("cpu", "gpu"), gradient=Gradient(_gradients, _keep_for_gradients))
