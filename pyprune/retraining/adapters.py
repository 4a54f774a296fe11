"""The model that is trained, made from a decoder: LoRA by peft, or all parameters; and the way back."""

from __future__ import annotations

import importlib.util
import os
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.files import whole_directory
from pyprune.models.decoder import Decoder
from pyprune.models.load_any import AnyDecoder
from pyprune.models.names import hf_name
from pyprune.models.ragged import PROJECTIONS
from pyprune.models.transformers_decoder import TransformersDecoder
from pyprune.models.transformers_model import to_transformers
from pyprune.retraining import other_families
from pyprune.retraining.prefix import first_cut
from pyprune.retraining.settings import FIRST_CUT, Settings

ADAPTER = "default"
WEIGHTS = "adapter_model.safetensors"
"""The file that peft writes adapters to."""
EXTRA = "pip install pyprune[retrain]"


def require_extra() -> None:
    """Raise InputError naming the command that installs what is missing."""
    missing = [name for name in ("peft", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"retrain: needs {' and '.join(missing)}, which are not installed ({EXTRA})")


def trainable(decoder: AnyDecoder, settings: Settings) -> Any:
    """A transformers model to train: with LoRA adapters, or a copy whose parameters all are trained in float32.

    With LoRA the frozen weights are the decoder's own where the dtype is the same: nothing writes to them.
    """
    dtype, first = base_dtype(decoder, settings), first_trained(decoder, settings)
    if isinstance(decoder, TransformersDecoder):
        model = other_families.copied(decoder, dtype)
    else:
        own = decoder.map(lambda tensor: tensor.detach().to(dtype, copy=settings.full))
        model = to_transformers(replace(own, config=_without_bad_padding(decoder)))
    for parameter in model.parameters():
        parameter.requires_grad_(settings.full)
    if first:
        for part in (model.get_input_embeddings(), *model.base_model.layers[:first]):
            part.requires_grad_(False)
    if settings.gradient_checkpointing:
        # transformers 5.24 renames it, and warns of the old name.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    if settings.full:
        return model
    targets = other_families.projections(decoder) if isinstance(decoder, TransformersDecoder) else None
    return with_lora(model, settings, first, targets)


def _without_bad_padding(decoder: Decoder) -> dict[str, Any]:
    """The configuration, without a padding id outside the vocabulary: torch's embedding refuses it, or takes -1 for its
    last row, which then never learns."""
    pad = decoder.config.get("pad_token_id")
    is_good = pad is None or 0 <= int(pad) < decoder.vocab_size
    return decoder.config if is_good else {**decoder.config, "pad_token_id": None}


def first_trained(decoder: AnyDecoder, settings: Settings) -> int:
    """The place of the first block that trains. InputError where there is no such block, or no cut."""
    if isinstance(decoder, TransformersDecoder):
        if settings.train_from != 0:
            raise InputError(
                f"retrain: train_from {settings.train_from}: {decoder.name} is of another family; 0 is expected"
            )
        return 0
    if settings.train_from == FIRST_CUT:
        return first_cut(decoder)
    place, blocks = int(settings.train_from), len(decoder.sizes().blocks)
    if place >= blocks:
        raise InputError(f"retrain: train_from {place}: 0 to {blocks - 1} are accepted for {decoder.name}")
    return place


def base_dtype(decoder: AnyDecoder, settings: Settings) -> torch.dtype:
    """Of the weights that the products read: bfloat16 only where they are frozen, so that they are not converted in
    every step."""
    return torch.bfloat16 if precision_of(decoder, settings) == "bf16" and not settings.full else torch.float32


def precision_of(decoder: AnyDecoder, settings: Settings) -> str:
    """The precision that was asked for, or the one of the decoder's dtype."""
    return settings.precision or ("fp32" if decoder.dtype == torch.float32 else "bf16")


def with_lora(model: Any, settings: Settings, first: int = 0, targets: list[str] | None = None) -> Any:
    """peft's model: adapters in float32 on every projection of every block from `first` on; targets: the names of the
    projections, where they are not Llama's."""
    from peft import LoraConfig, get_peft_model

    present = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]  # a factor, whole or not
        lora_dropout=settings.lora_dropout,
        target_modules=targets or [name for name in PROJECTIONS if name in present],
        layers_to_transform=list(range(first, len(model.base_model.layers))) if first else None,
        layers_pattern="layers" if first else None,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():  # peft reads the old name, of which transformers 5.24 warns
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        return get_peft_model(model, config, adapter_name=ADAPTER)


def merged(decoder: AnyDecoder, model: Any) -> AnyDecoder:
    """The decoder with what was trained in its weights: added in float32, rounded once to the decoder's dtype.

    Name, record and original indices stay, and so do all tensors that nothing was added to.
    """
    if isinstance(decoder, TransformersDecoder):
        return other_families.merged(decoder, model, ADAPTER)
    if not hasattr(model, "get_base_model"):
        return decoder_with(decoder, lambda name, tensor: model.get_parameter(hf_name(name)).detach().to(tensor.dtype))
    base = model.get_base_model()
    modules = dict(base.named_modules())

    def with_delta(name: str, tensor: Tensor) -> Tensor:
        owner, _, kind = hf_name(name).rpartition(".")
        module = modules[owner]
        if kind != "weight" or not hasattr(module, "get_delta_weight"):
            return tensor
        return (tensor.float() + module.get_delta_weight(ADAPTER).float()).to(tensor.dtype)

    with torch.no_grad():
        return decoder_with(decoder, with_delta)


def decoder_with(decoder: Decoder, change: Any) -> Decoder:
    """The decoder with `change(name, tensor)` in each tensor's place, names as in `Decoder.tensors()`."""
    new = {name: change(name, tensor) for name, tensor in decoder.tensors()}
    blocks = []
    for position, block in enumerate(decoder.blocks):
        names = {id(tensor): f"blocks.{position}.{name}" for name, tensor in block.tensors()}
        blocks.append(block.map(lambda tensor, names=names: new[names[id(tensor)]]))  # type: ignore[misc]
    head = replace(
        decoder.head,
        weight=new["embedding"] if decoder.tied else new["head.weight"],
        bias=new.get("head.bias"),
    )
    return replace(decoder, embedding=new["embedding"], blocks=tuple(blocks), norm=new["norm"], head=head)


def save_adapters(model: Any, directory: str | os.PathLike[str]) -> None:
    """Write the adapters alone as peft has them, whole or not at all. Where an interrupted run has written the same
    already, they stay; InputError where it is others that are there."""
    written = Path(directory) / WEIGHTS
    if not written.is_file():
        with whole_directory(directory) as scratch:
            model.save_pretrained(scratch, save_embedding_layers=False)
        return
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, save_embedding_layers=False)
        if (Path(folder) / WEIGHTS).read_bytes() != written.read_bytes():
            raise InputError(f"retrain: adapters {directory}: holds those of another training; a new one is expected")


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What the training changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
