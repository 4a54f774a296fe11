"""`load_any`: a model of any family, ours with our operators, others run by transformers."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pyprune.errors import InputError
from pyprune.files import read_json
from pyprune.models.decoder import Decoder
from pyprune.models.families import FAMILIES
from pyprune.models.load import download, is_hub_name, load, require_device
from pyprune.models.offloaded import execution_device
from pyprune.models.ragged import is_ragged
from pyprune.models.records import with_record_that_fits
from pyprune.models.tensors import as_dtype
from pyprune.models.transformers_decoder import TransformersDecoder
from pyprune.models.transformers_decoder.checkpoint import load_model, read_record
from pyprune.models.transformers_decoder.decoder import LayerBlock

AnyDecoder = Decoder | TransformersDecoder
"""What scoring and depth pruning work on."""


def load_any(
    spec: Any, dtype: torch.dtype | str | None = None, device: torch.device | str = "cpu", *, stream: bool = False
) -> AnyDecoder:
    """Read a model as `load` does where its family is one of ours, else as a `TransformersDecoder`.

    spec: what `load` takes; of any family of transformers a directory or hub name, or a loaded PreTrainedModel, which
    is run as it is and where it is. dtype, device, stream: as in `load`; other families are not streamed.
    InputError as in `load` and `TransformersDecoder.of`.
    """
    if isinstance(spec, TransformersDecoder):
        return spec
    if isinstance(spec, torch.nn.Module):
        if is_ours(getattr(getattr(spec, "config", None), "model_type", None)):
            return load(spec, dtype, device, stream=stream)
        decoder = TransformersDecoder.of(spec)
        path = Path(decoder.model.config._name_or_path or type(spec).__name__)
        return with_record_that_fits(_with_record, decoder, path)
    directory = _foreign_directory(spec)
    if directory is None:
        return load(spec, dtype, device, stream=stream)
    if stream:
        raise InputError(f"{spec}: cannot be streamed; a model of {', '.join(_our_types())} is expected")
    model = load_model(directory, None if dtype is None else as_dtype(dtype), require_device(device))
    name = directory.resolve().name if Path(os.fspath(spec)).is_dir() else os.fspath(spec)
    return _with_record(TransformersDecoder.of(model, name), directory)


def as_any_decoder(model: Any) -> AnyDecoder:
    """A decoder as it is, a PreTrainedModel read or run where its weights lie, and anything else as `load_any` reads
    it."""
    if isinstance(model, (Decoder, TransformersDecoder)):
        return model
    return load_any(model, device=execution_device(model) if isinstance(model, torch.nn.Module) else "cpu")


def is_ours(model_type: object) -> bool:
    """Whether a `model_type` is of a family that `load` reads."""
    return model_type in _our_types() or is_ragged(model_type)


def _our_types() -> list[str]:
    return [name for family in FAMILIES for name in family.model_types]


def _foreign_directory(spec: Any) -> Path | None:
    """The directory of a model of another family; None for anything that `load` reads or refuses."""
    if not isinstance(spec, (str, os.PathLike)):
        return None
    path = Path(spec)
    named = is_hub_name(os.fspath(spec))
    if not path.is_dir():
        if not named:
            return None
        path = download(os.fspath(spec), weights=False)
    config = path / "config.json"
    raw = read_json(config) if config.is_file() else None
    if not isinstance(raw, dict) or is_ours(raw.get("model_type")):
        return None
    return download(os.fspath(spec)) if named else path


def _with_record(decoder: TransformersDecoder, path: Path) -> TransformersDecoder:
    """The decoder with the record and the original indices of a pruned checkpoint."""
    record = read_record(path, len(decoder.blocks))
    if record is None:
        return decoder
    pruning, original, layers = record
    kept = [index for index in range(layers) if index not in pruning.blocks]
    blocks = tuple(LayerBlock(index, block.layer) for index, block in zip(kept, decoder.blocks, strict=True))
    return replace(decoder, blocks=blocks, config=original, original_blocks=layers, pruning=pruning)
