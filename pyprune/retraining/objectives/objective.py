"""The form of an objective, and the parts of a model that objectives work on."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from pyprune.retraining.samples import Batch


class Objective(Protocol):
    """A loss: the mean over the batch's target tokens, a scalar that is differentiable in the model's parameters.

    model: a transformers model, or peft's model around one. Autocast is on where the training has asked for it.
    """

    def __call__(self, model: torch.nn.Module, batch: Batch) -> Tensor: ...


def transformers_model(model: Any) -> Any:
    """The transformers model within peft's, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def last_states(model: Any, batch: Batch) -> Tensor:
    """The states `[N, T, hidden]` that the head reads, behind the final norm; no logits are computed."""
    body = transformers_model(model).base_model
    return body(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).last_hidden_state
