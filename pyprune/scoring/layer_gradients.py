"""Gradients of the loss through a model's own layers, as `runtime.differentiable` has them for a `Decoder`.

Only the states between layers are kept on the way forward; on the way back one layer at a time is run again. Layers are
called with stand-ins for their parameters, so that the model's own need no gradients and get none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from pyprune.models.transformers_decoder import LayerBlock, TransformersDecoder
from pyprune.models.transformers_decoder.checks import head_logits
from pyprune.models.transformers_decoder.inputs import LayerInputs
from pyprune.runtime.differentiable import HEAD_ROWS, BlockGradients
from pyprune.scoring.losses import IGNORED, targets_of


def layer_gradients(
    decoder: TransformersDecoder,
    input_ids: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float = 1.0,
    requires_grad: Callable[[str], bool] = lambda name: True,
) -> Iterator[BlockGradients]:
    """Gradients of `scale` * (negative log-likelihood summed over all predicted positions), last layer first.

    As `runtime.differentiable.block_gradients`, but computed in the model's own dtype, and without channels; a layer's
    states and slopes stand at its beginning and twice at its end. float16 would lose the slopes of a mean over many
    tokens: in 16 bits the sum is differentiated, and `scale` multiplies the gradients in float32.
    """
    ids = input_ids.to(decoder.device)
    mask = None if mask is None else mask.to(decoder.device)
    samples = range(len(ids))
    with torch.no_grad():
        inputs = LayerInputs(decoder.model, decoder.structure, ids, mask)
        states = [inputs.embedded]
        for place in range(len(decoder.blocks)):
            states.append(inputs.call(place, states[-1].clone(), samples))
    later = scale if decoder.dtype.itemsize == 2 else 1.0
    slope = _final_slope(decoder, states.pop(), targets_of(ids, mask), scale / later)
    for place in reversed(range(len(decoder.blocks))):
        gradients = _backward(decoder.blocks[place], place, inputs, states.pop(), slope, samples, requires_grad)
        slope = gradients.slopes[0]
        yield gradients if later == 1.0 else _scaled(gradients, later)


def _scaled(gradients: BlockGradients, scale: float) -> BlockGradients:
    """In float32, times `scale`."""
    first, middle, last = (slope.float() * scale for slope in gradients.slopes)
    weights = {name: gradient * scale for name, gradient in gradients.weights.items()}
    return replace(gradients, slopes=(first, middle, last), weights=weights)


def _final_slope(decoder: TransformersDecoder, x: Tensor, targets: Tensor, scale: float) -> Tensor:
    """dL/dx of the states behind the last layer."""
    slope = torch.zeros_like(x)
    for sample, target, into in zip(x[:, :-1], targets, slope[:, :-1], strict=True):
        for start in range(0, len(target), HEAD_ROWS):
            part = slice(start, start + HEAD_ROWS)
            with torch.enable_grad():
                rows = sample[None, part].detach().requires_grad_()
                logits = head_logits(decoder.structure, rows)[0]
                wide = logits if logits.dtype == torch.float64 else logits.float()
                loss = scale * F.cross_entropy(wide, target[part], reduction="sum", ignore_index=IGNORED)
            into[part] = torch.autograd.grad(loss, rows)[0][0]
    return slope


def _backward(
    block: LayerBlock, place: int, inputs: LayerInputs, x: Tensor, slope: Tensor, samples: range,
    requires_grad: Callable[[str], bool],
) -> BlockGradients:  # fmt: skip
    parameters = dict(block.layer.named_parameters())
    stand_ins = {name: tensor.detach().requires_grad_(requires_grad(name)) for name, tensor in parameters.items()}
    names = [name for name in parameters if requires_grad(name)]
    with torch.enable_grad():
        start = x.detach().requires_grad_()

        def layer(*args: object, **kwargs: object) -> object:
            return functional_call(block.layer, stand_ins, args, kwargs)

        end = inputs.call_module(layer, place, start, samples)
    leaves = [start, *(stand_ins[name] for name in names)]
    first, *found = torch.autograd.grad(end, leaves, slope, allow_unused=True)
    weights = {}
    for name, gradient in zip(names, found, strict=True):
        whole = torch.zeros_like(parameters[name]) if gradient is None else gradient
        weights[name] = block.viewed(name, whole if whole.dtype == torch.float64 else whole.float())
    end = end.detach()
    return BlockGradients(block, (start.detach(), end, end), (first, slope, slope), weights, {})
