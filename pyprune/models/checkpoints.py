"""Writing a decoder as a Hugging Face directory."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from pyprune.errors import InputError
from pyprune.files import require_free_directory, whole_directory, write_json
from pyprune.models.compensation import FILE as COMPENSATION
from pyprune.models.names import hf_name
from pyprune.models.protocol import DecoderLike
from pyprune.models.ragged import checkpoint_config
from pyprune.models.tokenizers import tokenizer_to_save

MAX_SHARD = "5GB"


def save_checkpoint(decoder: DecoderLike, directory: str | os.PathLike[str]) -> None:
    """Write `decoder` so that `AutoModelForCausalLM.from_pretrained` loads it: plainly where transformers can express
    it, else after `import pyprune` (`ragged.checkpoint_config`).

    Safetensors (shards of 5 GB with an index, a tied head once), `config.json`, `generation_config.json`, the
    tokenizer's files where there is a tokenizer, and for a pruned decoder `pruning.json` and `original_config.json`,
    with `compensation.safetensors` where the pruning added to biases.
    The directory appears whole or not at all. InputError, before anything is written, when it exists and is not empty,
    and when no configuration can express the decoder.
    """
    decoder.require_weights()
    require_free_directory(directory)
    config = checkpoint_config(decoder)
    if decoder.pruning is not None:
        _check_indices(decoder)
    tokenizer = tokenizer_to_save(decoder.tokenizer_source, decoder.name)
    with whole_directory(directory) as scratch:
        _write_weights({hf_name(part): tensor for part, tensor in decoder.tensors()}, scratch)
        write_json(scratch / "config.json", config)
        write_json(scratch / "generation_config.json", decoder.generation_config or _token_ids(config))
        if tokenizer is not None:
            tokenizer.save_pretrained(scratch)
        if decoder.pruning is not None:
            write_json(scratch / "pruning.json", decoder.pruning.to_dict())
            write_json(scratch / "original_config.json", decoder.config)
            added = decoder.pruning.compensation
            if added and added.complete():
                _save_file({name: _owned(tensor) for name, tensor in added.tensors().items()}, scratch / COMPENSATION)


def _token_ids(config: dict[str, Any]) -> dict[str, Any]:
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {"_from_model_config": True, **{key: config[key] for key in keys if config.get(key) is not None}}


def _check_indices(decoder: DecoderLike) -> None:
    removed = () if decoder.pruning is None else decoder.pruning.blocks
    kept = [index for index in range(decoder.original_blocks) if index not in removed]
    held = [block.index for block in decoder.blocks]
    if kept != held:
        raise InputError(f"{decoder.name}: its pruning leaves blocks {kept}, but it holds blocks {held}")


def _write_weights(state: dict[str, Tensor], directory: Path) -> None:
    from huggingface_hub import split_state_dict_into_shards_factory

    plan = split_state_dict_into_shards_factory(
        state,
        get_storage_size=lambda tensor: tensor.numel() * tensor.element_size(),
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=MAX_SHARD,
    )
    for file, names in plan.filename_to_tensors.items():
        _save_file({name: _owned(state[name]) for name in names}, directory / file)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        write_json(directory / "model.safetensors.index.json", index)


def _save_file(tensors: dict[str, Tensor], file: Path) -> None:
    """Write one shard. safetensors tells a full disk, as any error of the system, in words and in a type of its own;
    here it is the OSError with that number (ENOSPC)."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(file)) from error


def _owned(tensor: Tensor) -> Tensor:
    """Contiguous, and alone in its memory: safetensors refuses tensors that share it, as slices of a pruning can."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
