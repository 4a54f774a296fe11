"""The yardstick of numerical tests: float64, and how far plain PyTorch is from it on the machine at hand.

A fixed tolerance holds on the machine where it was found. Other instruction sets and numbers of threads add in another
order, and what a sum loses depends on its operands: plain PyTorch, which loses about as much, says how much that is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

# Beyond twice PyTorch's error, of the largest value: for one operator, and for the layers of a model, where the error
# that rounding begins with is amplified, and by how much is chance: 32 roundings of float32.
TINY = 1e-6
TINY_OF_MODELS = 4e-6
# Plain PyTorch itself has to be this near, in roundings of its dtype: else the inputs tell nothing.
CONDITION = 1000


def assert_no_worse_than_torch(
    result: Tensor, plain: Tensor, exact: Tensor, tiny: float = TINY, dtype: torch.dtype = torch.float32
) -> None:
    """The largest error is at most twice that of plain PyTorch in the same dtype, plus `tiny` of the largest value.

    Plain PyTorch is not credited with less than half a unit in the last place of `dtype`, in which it computes: of one
    or two values its rounding may happen to be nothing.
    """
    assert exact.dtype == torch.float64, f"{exact.dtype} is no reference: float64 is expected"
    assert result.shape == plain.shape == exact.shape
    if not exact.numel():
        return
    scale = exact.abs().max().clamp(min=1e-30)
    error = (result.double() - exact).abs().max()
    theirs = (plain.double() - exact).abs().max().clamp(min=torch.finfo(dtype).eps / 2 * scale)
    allowed = 2 * theirs + tiny * scale
    assert torch.isfinite(result).all()
    assert error <= allowed, f"error {error:.3e}, allowed {allowed:.3e}"


def assert_model_no_worse(result: Tensor, plain: Tensor, exact: Tensor) -> None:
    """The same for what a model of some layers computes, whose inputs have to be well conditioned."""
    theirs, scale = (plain.double() - exact).abs().max(), exact.abs().max()
    limit = CONDITION * torch.finfo(plain.dtype).eps * scale
    assert theirs <= limit, (
        f"badly conditioned: plain PyTorch's own error is {theirs:.3e}, at most {limit:.3e} expected"
    )
    assert_no_worse_than_torch(result, plain, exact, TINY_OF_MODELS, plain.dtype)


def assert_same_but_for_rounding(result: Tensor, expected: Tensor) -> None:
    """One function in float32 twice, whose sums may go in another order: at most 32 roundings of the largest value
    apart."""
    assert result.shape == expected.shape
    assert torch.isfinite(result).all()
    difference, scale = (result - expected).abs().max(), expected.abs().max()
    assert difference <= TINY_OF_MODELS * scale, f"{difference:.3e} apart, the largest value is {scale:.3e}"


ORDERS = 4


def assert_model_no_worse_in_any_order(result: Tensor, plain: Callable[[int], Tensor], exact: Tensor) -> None:
    """As `assert_model_no_worse`, where `plain(n)` computes the same with sums in order `n`, 0 the model's own.

    What rounding begins with is chance, and deep or peaked models multiply it: the error of one order is one draw.
    PyTorch's error is the largest of up to ORDERS draws, no more than are needed.
    """
    for order in range(ORDERS):
        try:
            return assert_model_no_worse(result, plain(order), exact)
        except AssertionError:
            if order == ORDERS - 1:
                raise


def reordered(model: nn.Module, order: int) -> nn.Module:
    """A copy of a Llama-like PyTorch model with the hidden channels in another order: the same function, other sums."""
    model = copy.deepcopy(model)
    if not order:
        return model
    channels = torch.randperm(model.config.hidden_size, generator=torch.Generator().manual_seed(order))
    with torch.no_grad():
        for name, weight in model.named_parameters():  # a tied head is one parameter
            if name.endswith(("o_proj.weight", "down_proj.weight", "o_proj.bias", "down_proj.bias")):
                weight.copy_(weight[channels].clone())
            elif name.endswith("bias") or "q_norm" in name or "k_norm" in name:
                continue
            else:
                weight.copy_(weight[..., channels].clone())
    return model


def in_float64(model: nn.Module) -> nn.Module:
    """A copy of a PyTorch model that computes in float64; what it is a copy of stays as it is."""
    return copy.deepcopy(model).double().eval()


def with_exact_norms(model: nn.Module) -> nn.Module:
    """The model with its RMSNorms in the dtype of their input; transformers computes them in float32.

    (Its eager attention has a float32 softmax too; SDPA has none.)
    """
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = lambda x, norm=module: (
                norm.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.variance_epsilon)
            )
    return model


def assert_as_near_as(
    result: Tensor, model: nn.Module, run: Callable[[nn.Module], Tensor], exact: nn.Module | None = None
) -> None:
    """`result` against what `run` gives of a PyTorch model, and of `exact` (else: of its copy in float64)."""
    with torch.no_grad():
        assert_model_no_worse(result, run(model), run(in_float64(model) if exact is None else exact))


def assert_same_tokens(tokens: Tensor, expected: Tensor, model: nn.Module) -> None:
    """Greedy `tokens [B, T]` against `expected`, those of a PyTorch model: the same, unless they part at a tie.

    At a tie the two next tokens' logits in float64 are nearer than the sum of two of the model's own errors: which is
    the greater is then chance, and so is all that follows.
    """
    assert tokens.shape == expected.shape
    for row, (ours, theirs) in enumerate(zip(tokens, expected, strict=True)):
        parting = (ours != theirs).nonzero()
        if not len(parting):
            continue
        place = int(parting[0])
        prefix = theirs[None, :place]
        with torch.no_grad():
            plain = model(prefix, use_cache=False).logits[0, -1]
            exact = in_float64(model)(prefix, use_cache=False).logits[0, -1]
        gap = (exact[theirs[place]] - exact[ours[place]]).abs()
        error = (plain.double() - exact).abs().max()
        assert error <= CONDITION * torch.finfo(plain.dtype).eps * exact.abs().max()
        assert gap <= 2 * error, f"row {row}, place {place}: {ours[place]} for {theirs[place]}, {gap:.3e} apart"
