"""Acceleration in place: modules of a model get a subclass of their own class, and get their own class back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from torch import nn

from pyprune.errors import InputError
from pyprune.runtime.huggingface.classes import Accelerated, accelerated_class, families, original_class
from pyprune.runtime.huggingface.layers import Layer, Linear, Rotary

Model = TypeVar("Model", bound=nn.Module)

ADAPTED = ".base_layer"
"""What PEFT's adapter layers call the layer that they are wrapped around."""


def accelerate(model: Model) -> Model:
    """Make `model` run on pyprune's operators from now on, in place, and return it; `restore` is the inverse.

    `model`: a transformers model of the Llama, Mistral, Qwen2 or Qwen3 family, with or without its LM head, or a module
    that holds one (a PEFT model, say). Its weights, state dict, hooks and the names of its classes stay what they are.
    Where an operator cannot stand in for transformers' own code (gradients, hooks, LoRA layers, GPUs ...) the latter
    runs; docs/reference/transformers.md lists the cases. An accelerated model may be given again.
    InputError, before anything is changed, for a model without decoder layers of these families.
    """
    swaps = list(_swaps(model))
    if not any(methods is Layer for _, _, methods in swaps):
        accepted = ", ".join(family.causal_lm.__name__ for family in families())
        raise InputError(
            f"accelerate: {type(model).__name__} given; accepted are models of transformers, whole, without their head "
            f"or inside another module, of the classes {accepted}"
        )
    for module, original, methods in swaps:
        # mypy takes a module's __hash__ for its class's.
        module.__class__ = accelerated_class(original, methods)  # type: ignore[arg-type]
    return model


def restore(model: Model) -> Model:
    """Give every module of `model` its original class back, in place, and return `model`.

    A model that was never accelerated stays as it is. InputError for anything but a torch module.
    """
    for module in _modules(model).values():
        module.__class__ = original_class(type(module))
    return model


def _swaps(model: nn.Module) -> Iterator[tuple[nn.Module, type[nn.Module], type[Accelerated]]]:
    """What can be accelerated in `model`, accelerated or not: module, original class, and the accelerated methods."""
    layers = {family.layer for family in families()}
    rotaries = {family.rotary for family in families()}
    causal_lms = tuple(family.causal_lm for family in families())
    for name, module in _modules(model).items():
        original = original_class(type(module))
        if original in layers:
            yield module, original, Layer
        elif original in rotaries:
            yield module, original, Rotary
        elif issubclass(original, causal_lms) and original_class(type(module.lm_head)) is nn.Linear:
            yield module.get_submodule("lm_head"), nn.Linear, Linear
        elif original is nn.Linear and name.endswith(ADAPTED):
            yield module, nn.Linear, Linear


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    if not isinstance(model, nn.Module):
        raise InputError(f"accelerate, restore: {type(model).__name__} given; a model of transformers is accepted")
    return dict(model.named_modules())
