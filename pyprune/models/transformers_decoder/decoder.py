"""A decoder of any family of transformers: a loaded model with its layers found, as scoring and pruning take it."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.models.load import tokenizer_source_of
from pyprune.models.pruning import Pruning, recorded
from pyprune.models.tokenizers import TokenizerSource, load_tokenizer
from pyprune.models.transformers_decoder.checkpoint import save_checkpoint
from pyprune.models.transformers_decoder.checks import checked_structure, context_length
from pyprune.models.transformers_decoder.pruned_model import pruned_model
from pyprune.models.transformers_decoder.structure import Structure, label

UNLIMITED = 1 << 30
"""Positions of a model whose configuration names no context, as of one without attention."""


@dataclass(frozen=True, eq=False)
class LayerBlock:
    """One layer as a block: its index in the original model, and the module. It has no sublayers of its own."""

    index: int
    layer: nn.Module

    mha = None
    ffn = None

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Its parameters with their names in the layer; matrices in torch's layout `[out, in]`, those of a list of
        experts as one, kernels of convolutions flattened."""
        for name, parameter in self.layer.named_parameters():
            yield name, self.viewed(name, parameter.detach())

    def viewed(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor of the size of the parameter of that name, such as its gradient, in the form of `tensors`."""
        if tensor.dim() == 2 and _is_transposed(self.layer.get_submodule(name.rpartition(".")[0])):
            return tensor.T
        return tensor.flatten(0, -2) if tensor.dim() > 2 else tensor


@dataclass(frozen=True, eq=False)
class TransformersDecoder:
    """A causal language model of transformers whose layers map a hidden state to the next, run as transformers has it.

    `model` is never modified. `structure`: its parts (`structure.find_structure`). `blocks`: its layers, by their
    indices in the original model. `config`: the original model's configuration; a pruned decoder keeps it. `pruning`:
    which layers were removed, None where none were. Only whole blocks can be scored and removed.
    """

    name: str
    model: Any
    structure: Structure
    blocks: tuple[LayerBlock, ...]
    config: dict[str, Any]
    original_blocks: int
    tokenizer_source: TokenizerSource | None = None
    pruning: Pruning | None = None

    @classmethod
    def of(cls, model: Any, name: str | None = None) -> TransformersDecoder:
        """The decoder of a loaded PreTrainedModel, which is run as it is; `name`: the directory or class by default.

        InputError, one line with the reason, for an encoder-decoder, a model in training mode or spread over devices,
        one whose layers pass more than a hidden state on, and one that gives other logits when run layer by layer.
        """
        _require_runnable(model)
        structure = checked_structure(model)
        path = Path(getattr(model.config, "_name_or_path", "") or label(model))
        blocks = tuple(LayerBlock(index, layer) for index, layer in enumerate(structure.layers))
        return cls(
            name=name or (path.name if path.is_absolute() else str(path)),
            model=model,
            structure=structure,
            blocks=blocks,
            config=json.loads(model.config.to_json_string(use_diff=False)),
            original_blocks=len(blocks),
            tokenizer_source=tokenizer_source_of(model),
        )

    @property
    def hidden_size(self) -> int:
        return self.structure.hidden_size

    @cached_property
    def vocab_size(self) -> int:
        """The ids that have an embedding and logits."""
        return min(int(self.model.get_input_embeddings().weight.shape[0]), self.structure.vocab_size)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def max_positions(self) -> int:
        """The model's context."""
        return context_length(self.model) or UNLIMITED

    @property
    def streamed(self) -> bool:
        return False

    def sizes(self) -> TransformersDecoder:
        """The decoder itself: as for a `Decoder`, whose blocks may be in a file."""
        return self

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter once, with transformers' name."""
        return ((name, parameter.detach()) for name, parameter in self.model.named_parameters())

    def parameters(self) -> int:
        """Number of parameters, a tied head counted once."""
        return sum(tensor.numel() for _, tensor in self.tensors())

    def block_parameters(self) -> dict[int, int]:
        """How many parameters the model loses with each block: what blocks share stays with the last of them."""
        uses = Counter(id(parameter) for block in self.blocks for parameter in block.layer.parameters())
        return {
            block.index: sum(p.numel() for p in block.layer.parameters() if uses[id(p)] == 1) for block in self.blocks
        }

    def describe_sizes(self, original_parameters: int) -> dict[str, Any]:
        """Its sizes as JSON data, for reports; `removed_share`: of the unpruned model's `original_parameters`."""
        parameters = self.parameters()
        return {
            "parameters": parameters,
            "removed_share": 1 - parameters / original_parameters,
            "blocks": len(self.blocks),
            "bytes": sum(tensor.numel() * tensor.element_size() for _, tensor in self.tensors()),
        }

    def check(self, removed: Pruning) -> None:
        """InputError for a pruning of anything but blocks, for an index that the original does not have, and for all
        blocks."""
        for kind in ("mha", "ffn", "kv_groups", "heads", "neurons", "pad_to", "compensation"):
            if getattr(removed, kind):
                raise InputError(
                    f"pruning: {kind} of {self.name}: only whole blocks can be removed from a {label(self.model)}"
                )
        for index in removed.blocks:
            if index >= self.original_blocks:
                raise InputError(
                    f"pruning: blocks names block {index}; 0 to {self.original_blocks - 1} of {self.name} are accepted"
                )
        if all(block.index in removed.blocks for block in self.blocks):
            raise InputError(f"pruning: all {len(self.blocks)} blocks are removed; at least one must stay")

    def without(self, removed: Pruning) -> TransformersDecoder:
        """The decoder without these blocks, in original indices: a model of its own that shares the tensors.

        InputError as in `check`, and where transformers cannot express what is left (`pruned_model`).
        """
        self.check(removed)
        record = recorded(self).joined(removed)
        kept = [place for place, block in enumerate(self.blocks) if block.index not in record.blocks]
        if len(kept) == len(self.blocks):
            return self
        model = pruned_model(self.model, self.structure, kept)
        structure = checked_structure(model)
        blocks = tuple(
            LayerBlock(self.blocks[place].index, layer) for place, layer in zip(kept, structure.layers, strict=True)
        )
        return replace(self, model=model, structure=structure, blocks=blocks, pruning=record)

    def tokenizer(self) -> Any:
        """The model's tokenizer (a transformers tokenizer). InputError when the model has none."""
        return load_tokenizer(self.tokenizer_source, self.name)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write a plain checkpoint, which transformers loads without pyprune; whole or not at all."""
        save_checkpoint(self, directory)


def _is_transposed(module: nn.Module) -> bool:
    """Whether a module's matrix is `[in, out]`: GPT-2's Conv1D."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def _require_runnable(model: Any) -> None:
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise InputError(f"{label(model)}: a PreTrainedModel of transformers is expected")
    if model.config.is_encoder_decoder:
        raise InputError(f"{label(model)}: an encoder-decoder; a decoder-only model is expected")
    devices = {tensor.device for tensor in model.parameters()}
    if len(devices) != 1 or next(iter(devices)).type == "meta":
        raise InputError(
            f"{label(model)}: its weights are on {', '.join(sorted(map(str, devices)))}; one device that holds all of"
            " them is expected"
        )
    if model.training:
        raise InputError(f"{label(model)}: it is in training mode; model.eval() is expected first")
