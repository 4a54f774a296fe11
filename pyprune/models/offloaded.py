"""Models of which accelerate keeps weights elsewhere, on disk or in the CPU's memory, until a layer runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyprune.models.tensors import StateDictSource


def is_offloaded(model: nn.Module) -> bool:
    """Whether accelerate's hooks hold weights of `model` that are on the meta device meanwhile."""
    return any(parameter.is_meta and _hook(model, name) is not None for name, parameter in model.named_parameters())


def execution_device(model: nn.Module) -> torch.device:
    """The device on which the model computes, wherever its weights are kept."""
    for name, _ in model.named_parameters():
        hook = _hook(model, name)
        if hook is not None and hook.execution_device is not None:
            return torch.device(hook.execution_device)
    return torch.device(getattr(model, "device", "cpu"))


class OffloadedSource(StateDictSource):
    """The weights of an offloaded model, those that are away fetched one by one; its hooks are only read."""

    shared = False  # what was fetched from a file stays in the file

    def __init__(self, label: str, model: nn.Module, name_of: Callable[[str], str]) -> None:
        super().__init__(label, model.state_dict(), name_of)
        self._model = model

    def read(self, name: str) -> Tensor:
        tensor = super().read(name)
        hook = _hook(self._model, name) if tensor.is_meta else None
        return tensor if hook is None else hook.weights_map[name.rpartition(".")[2]].detach()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)


def _hook(model: nn.Module, name: str) -> Any:
    """accelerate's hook that holds the parameter of that name, None when there is none."""
    hook: Any = getattr(model.get_submodule(name.rpartition(".")[0]), "_hf_hook", None)
    hooks: Any = getattr(hook, "hooks", (hook,))  # several in a row
    return next((each for each in hooks if getattr(each, "offload", False) and each.weights_map is not None), None)
