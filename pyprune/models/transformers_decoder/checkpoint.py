"""Writing and reading checkpoints of any family: plain ones of transformers, with the record of a pruning beside."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any, Protocol

import torch

from pyprune.errors import InputError
from pyprune.files import read_json, require_free_directory, whole_directory, write_json
from pyprune.models.pruning import Pruning
from pyprune.models.tensors import one_line
from pyprune.models.tokenizers import TokenizerSource, tokenizer_to_save

RECORD, ORIGINAL = "pruning.json", "original_config.json"


class Saved(Protocol):
    """What is written of a `TransformersDecoder`, where it is explained."""

    @property
    def name(self) -> str: ...
    @property
    def model(self) -> Any: ...
    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def tokenizer_source(self) -> TokenizerSource | None: ...
    @property
    def pruning(self) -> Pruning | None: ...


def save_checkpoint(decoder: Saved, directory: str | os.PathLike[str]) -> None:
    """Write safetensors, configuration, generation configuration, tokenizer files, and for a pruned decoder
    `pruning.json` and `original_config.json`; the directory appears whole or not at all.

    InputError, before anything is written, when it exists and is not empty.
    """
    require_free_directory(directory)
    tokenizer = tokenizer_to_save(decoder.tokenizer_source, decoder.name)
    model, config = decoder.model, decoder.model.config
    with whole_directory(directory) as scratch:
        model.config = copy.deepcopy(config)  # saving writes into it
        try:
            model.save_pretrained(scratch, max_shard_size="5GB")
        finally:
            model.config = config
        if tokenizer is not None:
            tokenizer.save_pretrained(scratch)
        if decoder.pruning is not None:
            write_json(scratch / RECORD, decoder.pruning.to_dict())
            write_json(scratch / ORIGINAL, decoder.config)


def load_model(directory: Path, dtype: torch.dtype | None, device: torch.device) -> Any:
    """The causal language model of a Hugging Face directory, in eval mode; dtype None: the checkpoint's own.

    Code that comes with a checkpoint is not run. InputError, naming the directory, when transformers has no such causal
    model, or when tensors are missing or misshapen (which transformers would fill with random values).
    """
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype or "auto", local_files_only=True, trust_remote_code=False, output_loading_info=True
        )
        model, info = loaded
    except Exception as error:  # each file format and each family has exceptions of its own
        raise InputError(
            f"{directory}: transformers cannot load it as a causal model ({one_line(error)[:300]})"
        ) from None
    for what in ("missing_keys", "mismatched_keys"):
        if info.get(what):
            names = sorted(map(str, info[what]))
            raise InputError(
                f"{directory}: {what.replace('_', ' ')} {', '.join(names[:3])}; a whole checkpoint is expected"
            )
    return model.to(device).eval()


def read_record(directory: Path, layers: int) -> tuple[Pruning, dict[str, Any], int] | None:
    """The pruning that a directory records, the original configuration and how many layers that has; None where it
    records none.

    layers: how many the checkpoint has. InputError naming the file for a record that is not of this checkpoint.
    """
    file = directory / RECORD
    if not file.is_file():
        return None
    original = read_json(directory / ORIGINAL)
    if not isinstance(original, dict):
        raise InputError(f"{directory / ORIGINAL}: not a JSON object")
    pruning = Pruning.from_json(file)
    total = layers + len(pruning.blocks)
    if not _states(original, total) or (pruning.blocks and pruning.blocks[-1] >= total):
        raise InputError(
            f"{file}: removes {len(pruning.blocks)} blocks, but the checkpoint holds {layers} of another number"
        )
    return pruning, original, total


def _states(config: dict[str, Any], layers: int) -> bool:
    """Whether a configuration, or one within it, states this number of layers."""
    return any(
        _states(value, layers) if isinstance(value, dict) else value == layers and "layer" in name
        for name, value in config.items()
    )
