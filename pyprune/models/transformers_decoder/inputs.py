"""What a model gives its layers, made by the model itself: masks, positions, rotary embeddings, layer types.

The model's own forward pass is run on the samples with layers that return the hidden state as it comes, and what each
is called with is kept. It is run once more with one sample repeated: the dimensions that grow are those of the batch,
so that any rows of it, any number of times, can be put in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.models.transformers_decoder.structure import LayerCall, Structure, forward_arguments, label
from pyprune.models.transformers_decoder.trees import Path, equal_leaves, leaves, mapped, written

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional arguments, and those by name."""


class _Done(Exception):
    """The last layer was reached."""


class LayerInputs:
    """What each layer is called with on samples `[S, T]`, and how to call it on any of them.

    `embedded [S, T, hidden]`: the hidden state before the first layer.
    """

    def __init__(self, model: nn.Module, structure: Structure, input_ids: Tensor, mask: Tensor | None) -> None:
        self._structure, self._samples = structure, len(input_ids)
        self._arguments = captured(model, structure, input_ids, mask)
        more_mask = None if mask is None else torch.cat([mask, mask[-1:]])
        more = captured(model, structure, torch.cat([input_ids, input_ids[-1:]]), more_mask)
        self._axes = [
            _batch_axes(arguments, larger, self._samples, f"{label(model)}: layer {layer}")
            for layer, (arguments, larger) in enumerate(zip(self._arguments, more, strict=True))
        ]
        self.embedded = hidden_of(self._arguments[0], structure.calls[0])

    def call(self, layer: int, x: Tensor, samples: Sequence[int]) -> Tensor:
        """The hidden state `[N, T, hidden]` behind a layer of the model, for x before it; samples: which one each row
        of x is a state of."""
        return self.call_module(self._structure.layers[layer], layer, x, samples)

    def call_module(self, module: Callable[..., Any], layer: int, x: Tensor, samples: Sequence[int]) -> Tensor:
        """The same of another module or function in a layer's place, called as the model calls that layer."""
        call, axes = self._structure.calls[layer], self._axes[layer]

        def placed(path: Path, leaf: Any) -> Any:
            if path == call.hidden:
                return x
            return leaf if path not in axes else _rows(leaf, axes[path], self._samples, samples)

        args, kwargs = mapped(self._arguments[layer], placed)
        output = module(*args, **kwargs)
        return output[0] if isinstance(output, (tuple, list)) else output

    def nbytes(self) -> int:
        """Bytes of the tensors that are kept, each counted once."""
        tensors = {
            leaf.untyped_storage().data_ptr(): leaf.untyped_storage().nbytes()
            for _, leaf in leaves(self._arguments)
            if isinstance(leaf, Tensor)
        }
        return sum(tensors.values())


@torch.no_grad()
def captured(model: nn.Module, structure: Structure, input_ids: Tensor, mask: Tensor | None) -> list[Arguments]:
    """What the model calls each of its layers with on `input_ids [N, T]`, if every layer returned what it is given."""
    seen: list[Arguments] = []
    with _passing_through(structure, seen):
        try:
            model(**forward_arguments(model, input_ids, mask))
        except _Done:
            return seen
    raise InputError(f"{label(model)}: {len(seen)} of its {len(structure.layers)} layers run; all are expected")


def hidden_of(arguments: Arguments, call: LayerCall) -> Tensor:
    """The hidden state among the arguments of a layer."""
    return next(leaf for path, leaf in leaves(arguments) if path == call.hidden)


def require_independent(
    model: nn.Module, structure: Structure, arguments: list[Arguments], real: list[Arguments]
) -> None:
    """InputError where a layer is given, beside the hidden state, what the layers before it have computed.

    arguments: with layers that return what they are given; real: of an ordinary forward pass.
    """
    for layer, (call, passed, ordinary) in enumerate(zip(structure.calls, arguments, real, strict=True)):
        expected = dict(leaves(ordinary))
        for path, leaf in leaves(passed):
            if path != call.hidden and (path not in expected or not equal_leaves(leaf, expected[path])):
                raise InputError(
                    f"{label(model)}: layer {layer} is given {written(path)}, which the layers before it compute or"
                    " share; nothing but the hidden state may pass from layer to layer"
                )
        if len(expected) != len(list(leaves(passed))):
            raise InputError(f"{label(model)}: layer {layer} is given other arguments by the layers before it")


@contextmanager
def _passing_through(structure: Structure, seen: list[Arguments]) -> Iterator[None]:
    """The layers note what they are called with and return the hidden state; the last one ends the pass."""
    layers = list(structure.layers)
    forwards = [layer.__dict__.get("forward") for layer in layers]

    def stub(call: LayerCall, last: bool) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            seen.append((args, kwargs))
            if last:
                raise _Done
            x = hidden_of((args, kwargs), call)
            return (x, *[None] * (call.returned - 1)) if call.returned else x

        return forward

    try:
        for layer, call in zip(layers, structure.calls, strict=True):
            layer.forward = stub(call, layer is layers[-1])
        yield
    finally:
        for layer, forward in zip(layers, forwards, strict=True):
            if forward is None:
                layer.__dict__.pop("forward", None)
            else:
                layer.forward = forward


def _batch_axes(arguments: Arguments, larger: Arguments, samples: int, where: str) -> dict[Path, int]:
    """The dimension of each tensor that grows with the batch, from `samples` rows to one more."""
    axes = {}
    larger_leaves = dict(leaves(larger))
    for path, leaf in leaves(arguments):
        larger_leaf = larger_leaves.get(path)
        if not isinstance(leaf, Tensor) or not isinstance(larger_leaf, Tensor) or leaf.shape == larger_leaf.shape:
            continue
        grown = [axis for axis, (a, b) in enumerate(zip(leaf.shape, larger_leaf.shape, strict=True)) if a != b]
        size = leaf.shape[grown[0]]
        if len(grown) > 1 or size % samples or larger_leaf.shape[grown[0]] != size // samples * (samples + 1):
            raise InputError(f"{where} is given {written(path)}, whose shape no one dimension is the batch of")
        axes[path] = grown[0]
    return axes


def _rows(tensor: Tensor, axis: int, count: int, samples: Sequence[int]) -> Tensor:
    """The rows of these samples, of `count` in all, of a tensor whose dimension `axis` is samples times something."""
    if list(samples) == list(range(count)):
        return tensor
    parts = tensor.unflatten(axis, (count, -1))
    if parts.stride(axis) == 0:  # one row for all: it stays so
        rows = parts.narrow(axis, 0, 1).expand(*parts.shape[:axis], len(samples), *parts.shape[axis + 1 :])
    else:
        rows = parts.index_select(axis, torch.tensor(list(samples), device=tensor.device))
    return rows.flatten(axis, axis + 1)
