"""The leading blocks of a model in training that do not train: run by the operators for inference.

Up to the first cut a depth-pruned model is its original. Where the adapters leave those blocks out, teacher and student
have one stream up to there, computed once, and no gradient goes below it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.models.decoder import Decoder
from pyprune.retraining.objectives.objective import transformers_model
from pyprune.retraining.samples import Batch


def first_cut(decoder: Decoder) -> int:
    """The place of the first block of a pruned decoder that lacks something or has something missing before it.

    Where only what follows the last block went, that is the last block. InputError where nothing went.
    """
    pruning = decoder.pruning
    narrowed: set[int] = set()
    if pruning is not None:
        narrowed = {*pruning.mha, *pruning.ffn, *pruning.kv_groups, *pruning.heads, *pruning.neurons}
    if pruning is None or not (pruning.blocks or narrowed):
        raise InputError(f"{decoder.name}: nothing was removed, so there is no first cut; train_from 0 is expected")
    blocks = decoder.sizes().blocks
    return next(
        (place for place, block in enumerate(blocks) if block.index != place or block.index in narrowed),
        len(blocks) - 1,
    )


def frozen_blocks(model: nn.Module) -> int:
    """How many leading layers of a transformers model, or PEFT's around one, have nothing that trains; 0 where the
    embedding trains."""
    inner = transformers_model(model).base_model
    count = 0
    for part in (inner.embed_tokens, *inner.layers):
        if any(parameter.requires_grad for parameter in part.parameters()):
            break
        count += 1
    return max(0, count - 1)


def padding_mask(batch: Batch, device: torch.device) -> Tensor | None:
    """The batch's mask for those operators, bool `[N, T]`, False where a token is padding; None without any."""
    mask = batch.get("attention_mask")
    if mask is None or bool(mask.all()):
        return None
    return mask.to(device, torch.bool)


@contextlib.contextmanager
def with_layers(inner: Any, layers: list[nn.Module]) -> Iterator[None]:
    """Meanwhile the model has these layers."""
    own = inner.layers
    inner.layers = nn.ModuleList(layers)
    try:
        yield
    finally:
        inner.layers = own


class Passed(nn.Module):
    """In the place of a layer that has been run already; the count of layers stays, by which masks are chosen."""

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        return hidden_states


class Recorded(nn.Module):
    """A layer whose output is kept, outside of its checkpoint: a hook within would also see the second run."""

    def __init__(self, layer: nn.Module, outputs: list[Tensor]) -> None:
        super().__init__()
        self._layer, self._outputs = layer, outputs

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("_layer"), name)  # `attention_type` chooses a mask

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self._layer(*args, **kwargs)
        self._outputs.append(output[0] if isinstance(output, tuple) else output)
        return output


def states_behind(
    model: nn.Module,
    batch: Batch,
    prefix: Tensor | None = None,
    blocks: int = 0,
    outputs: list[Tensor] | None = None,
) -> Tensor:
    """As `objective.last_states`: the states `[N, T, hidden]` that the head reads.

    prefix: the stream behind the first `blocks` layers `[N, T, hidden]`, which are not run then. outputs: gets the
    stream behind each layer that is run.
    """
    inner = transformers_model(model).base_model
    layers: list[nn.Module] = list(inner.layers)
    if prefix is not None:
        layers[:blocks] = [Passed() for _ in range(blocks)]
    if outputs is not None:
        layers = [layer if isinstance(layer, Passed) else Recorded(layer, outputs) for layer in layers]
    arguments: dict[str, Any] = {"attention_mask": batch["attention_mask"]}
    if prefix is None:
        arguments["input_ids"] = batch["input_ids"]
    else:
        arguments["inputs_embeds"] = prefix.to(inner.embed_tokens.weight.dtype)
        if getattr(layers[-1], "gradient_checkpointing", False):
            arguments["inputs_embeds"].requires_grad_()  # a reentrant checkpoint passes gradients on only then
    with with_layers(inner, layers):
        return inner(**arguments, use_cache=False).last_hidden_state
