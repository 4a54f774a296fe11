"""`load`: one way in for every kind of checkpoint."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pyprune.errors import InputError
from pyprune.files import read_json
from pyprune.models.decoder import Decoder
from pyprune.models.demo import DEMO_MODEL, demo_model_path
from pyprune.models.families import Family, family_of
from pyprune.models.gguf_reading import load_gguf
from pyprune.models.names import hf_name
from pyprune.models.offloaded import OffloadedSource, execution_device, is_offloaded
from pyprune.models.ragged import is_ragged, ragged_from_dict
from pyprune.models.reading import read_decoder
from pyprune.models.records import json_object, with_record, with_record_that_fits
from pyprune.models.shapes import PREFIX, SHAPES, load_shape
from pyprune.models.sizes import BlockSizes
from pyprune.models.tensors import DTYPES, NoWeights, SafetensorsSource, StateDictSource, as_dtype, one_line
from pyprune.models.tokenizers import TokenizerSource, directory_source

ACCEPTED = (
    f"accepted: a Hugging Face directory or hub name, a .gguf file, {DEMO_MODEL},"
    f" {', '.join(PREFIX + name for name in SHAPES)}"
)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_CONFIG = ["config.json", "original_config.json", "pruning.json"]
_HUB_FILES = ["*.json", "*.safetensors", "tokenizer*", "*.jinja", "merges.txt", "vocab.txt"]


def load(
    spec: Any, dtype: torch.dtype | str | None = None, device: torch.device | str = "cpu", *, stream: bool = False
) -> Decoder:
    """Read a model as a `Decoder`.

    `spec`: a Hugging Face directory or hub name, a `.gguf` file, `smollm2-135m`, `shape:NAME`, a loaded transformers
    PreTrainedModel (its weights are shared where dtype and device allow, and it is never modified; where accelerate has
    offloaded some, blocks are streamed; it has the pruning record of the directory that it came from), or a Decoder.
    On a GPU matrices of odd width are copies with rows of their own
    distance (`Decoder.to`), all else is shared there too.
    `dtype` None keeps the checkpoint's own: the configuration's, as transformers does, else the embedding's; float32
    for a quantised GGUF file. `stream`: of a Hugging Face directory or hub name, read each block only when it is
    run, and the next one meanwhile (`Decoder.blocks` is then a `StreamedBlocks`): to score models larger than memory.

    Raises InputError, one line naming the value or the file and the tensor, for anything that cannot be read: a spec of
    no known kind, an unsupported family, a file cut short, a tensor that is missing, misshapen, or not finite.
    """
    requested_dtype = None if dtype is None else as_dtype(dtype)
    target_device = require_device(device)
    if stream:
        return _read_streamed(spec, requested_dtype, target_device)
    if isinstance(spec, Decoder):
        return spec.to(requested_dtype, target_device)
    if isinstance(spec, torch.nn.Module):
        return _load_model(spec, requested_dtype, target_device)
    return _read(spec, requested_dtype, target_device)


def load_sizes(spec: Any, dtype: torch.dtype | str | None = None) -> Decoder:
    """The decoder that `load` gives, without its weights: each tensor is on the meta device and has a size only.

    It is read from the configuration alone (config.json, GGUF metadata, a shape's numbers), so that models larger than
    this machine can be planned; of a hub name only the configuration is downloaded. A configuration that ties head and
    embedding is believed. InputError as for `load`, where the configuration tells.
    """
    requested_dtype, meta = None if dtype is None else as_dtype(dtype), torch.device("meta")
    if isinstance(spec, (Decoder, torch.nn.Module)):
        return as_decoder(spec).sizes().map(lambda tensor: torch.empty_like(tensor, dtype=requested_dtype, device=meta))
    return _read(spec, requested_dtype, meta)


def _read(spec: Any, requested_dtype: torch.dtype | None, target_device: torch.device) -> Decoder:
    """The model that a path or a name stands for; on the meta device its sizes."""
    if not isinstance(spec, (str, os.PathLike)):
        raise InputError(f"{spec!r}: not a model; {ACCEPTED}, a PreTrainedModel, a Decoder")
    text = os.fspath(spec)
    path = Path(text)
    if text == DEMO_MODEL:
        return load_gguf(demo_model_path(), DEMO_MODEL, requested_dtype, target_device)
    if text.startswith(PREFIX):
        return load_shape(text, requested_dtype, target_device)
    if path.is_dir():
        return _load_directory(path, path.resolve().name, requested_dtype, target_device)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise InputError(f"{text}: not a .gguf file; {ACCEPTED}")
        return load_gguf(path, path.stem, requested_dtype, target_device)
    if not is_hub_name(text):
        raise InputError(f"{text}: no such file or directory; {ACCEPTED}")
    path = download(text, weights=target_device.type != "meta")
    return _load_directory(path, text, requested_dtype, target_device)


def _read_streamed(spec: Any, requested_dtype: torch.dtype | None, target_device: torch.device) -> Decoder:
    text = os.fspath(spec) if isinstance(spec, (str, os.PathLike)) else type(spec).__name__
    local = Path(text).is_dir()
    named = is_hub_name(text)
    if not isinstance(spec, (str, os.PathLike)) or not (local or named):
        raise InputError(f"{text}: cannot be streamed; a Hugging Face directory or hub name in safetensors is expected")
    path = Path(text) if local else download(text)
    return _load_directory(path, path.resolve().name if local else text, requested_dtype, target_device, stream=True)


def as_decoder(model: Any) -> Decoder:
    """A Decoder as it is, a PreTrainedModel read where its weights lie, and anything else as `load` reads it."""
    if isinstance(model, Decoder):
        return model
    return load(model, device=execution_device(model) if isinstance(model, torch.nn.Module) else "cpu")


def require_device(device: torch.device | str) -> torch.device:
    """The device, if tensors can be put there; else InputError naming the devices that this machine has."""
    try:
        target_device = torch.device(device)
        if target_device.type not in ("cpu", "cuda"):
            raise RuntimeError("no such kind of device here")
        torch.empty(0, device=target_device)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = one_line(error).split(". ")[0]
        here = ", ".join(["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))])
        raise InputError(f"device {device}: cannot be used ({reason}); accepted here: {here}") from None
    return target_device


def is_hub_name(text: str) -> bool:
    """Whether a text can only be a name on the Hugging Face hub: nothing here has it."""
    named = _HUB_NAME.fullmatch(text) is not None and not text.lower().endswith(".gguf")
    return named and text != DEMO_MODEL and not Path(text).exists()


def tokenizer_source_of(model: Any) -> TokenizerSource | None:
    """The tokenizer of a loaded PreTrainedModel: that of the directory or the hub name it came from."""
    name = model.config._name_or_path or ""
    if name and Path(name).is_dir():
        return directory_source(Path(name))
    return TokenizerSource(name, from_hub=True) if is_hub_name(name) else None


def download(name: str, weights: bool = True) -> Path:
    """The directory of a model of the hub, without `weights` only what describes it. InputError when it cannot be
    had."""
    from huggingface_hub import snapshot_download

    files = _HUB_FILES if weights else _HUB_CONFIG
    try:
        # Only the top folder: others hold the same weights in other formats.
        return Path(snapshot_download(name, allow_patterns=files, ignore_patterns=["*/*", "consolidated*"]))
    except Exception as error:  # network, cache and name errors come as many types
        reason = one_line(error)[:200]
        raise InputError(f"{name}: no such path, nor had from the Hugging Face hub ({reason}); {ACCEPTED}") from None


def _own_dtype(config: dict[str, Any], embedding: Callable[[], torch.dtype], where: str) -> torch.dtype:
    stated = config.get("dtype")
    own = DTYPES.get(str(stated).removeprefix("torch.")) if stated else embedding()
    if own is None or own not in DTYPES.values():
        raise InputError(f"{where}: dtype {stated or own} is not supported; pass dtype: float32, bfloat16 or float16")
    return own


def _load_directory(
    path: Path, name: str, dtype: torch.dtype | None, device: torch.device, stream: bool = False
) -> Decoder:
    file = path / "config.json"
    if not file.is_file():
        raise InputError(f"{path}: no config.json; {ACCEPTED}")
    raw = read_json(file)
    if not isinstance(raw, dict):
        raise InputError(f"{file}: not a JSON object; a model configuration is expected")
    family, config, sizes = _described(raw, str(file))
    sized = device.type == "meta"
    source = NoWeights() if sized else SafetensorsSource(path, hf_name)
    if dtype is None:  # only where the configuration states none are the weights asked
        dtype = _own_dtype(
            config,
            lambda: (SafetensorsSource(path, hf_name) if sized else source).own_dtype("embedding"),
            str(file),
        )
    decoder = read_decoder(
        family, config, source, name=name, where=str(file), dtype=dtype, device=device, sizes=sizes, stream=stream
    )
    _refuse_unused(source.names(), source.taken, len(decoder.blocks), source.where)
    generation = path / "generation_config.json"
    decoder = replace(
        decoder,
        generation_config=json_object(generation) if generation.is_file() else None,
        tokenizer_source=directory_source(path),
    )
    return with_record(decoder, path)


def _described(raw: dict[str, Any], where: str) -> tuple[Family, dict[str, Any], list[BlockSizes]]:
    """The family, the plain configuration and each block's sizes of a config.json."""
    if is_ragged(raw.get("model_type")):
        return ragged_from_dict(raw, where)
    family = family_of(raw.get("model_type"), where)
    config = family.config_from_dict(raw, where)
    return family, config, family.sizes(config)


def _refuse_unused(names: Any, taken: set[str], blocks: int, where: Callable[[str], str]) -> None:
    """A tensor of a block that the configuration does not speak of (a bias, say) would change the model if dropped."""
    for name in sorted(names):
        match = re.match(r"model\.layers\.(\d+)\.", name)
        if match and int(match[1]) < blocks and name not in taken and not name.endswith("rotary_emb.inv_freq"):
            raise InputError(f"{where(name)}: tensor {name} is not expected by the configuration")


def _load_model(model: torch.nn.Module, dtype: torch.dtype | None, device: torch.device) -> Decoder:
    from transformers import PreTrainedModel

    label = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise InputError(f"{label}: not a transformers PreTrainedModel; {ACCEPTED}, a PreTrainedModel, a Decoder")
    family, config, sizes = _described(model.config.to_dict(), label)
    away = is_offloaded(model)
    source = OffloadedSource(label, model, hf_name) if away else StateDictSource(label, model.state_dict(), hf_name)
    own = source.own_dtype("embedding")  # the weights tell: a model that was cast keeps its old configuration
    config["dtype"] = str(own).removeprefix("torch.")
    dtype = dtype or _own_dtype(config, lambda: own, label)
    path = Path(model.config._name_or_path or label)
    name = path.name if path.is_absolute() else str(path)
    decoder = read_decoder(
        family, config, source, name=name, where=label, dtype=dtype, device=device, sizes=sizes, stream=away
    )
    _refuse_unused(source.names(), source.taken, len(decoder.blocks), source.where)
    generation = getattr(model, "generation_config", None)
    decoder = replace(
        decoder,
        generation_config=None if generation is None else generation.to_diff_dict(),
        tokenizer_source=tokenizer_source_of(model),
    )
    return with_record_that_fits(with_record, decoder, path)
