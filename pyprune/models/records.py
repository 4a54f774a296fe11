"""The record that a pruned checkpoint carries: `pruning.json`, `original_config.json` and what was added to biases."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pyprune.errors import InputError
from pyprune.files import read_json
from pyprune.models.compensation import FILE
from pyprune.models.decoder import Decoder
from pyprune.models.families import family_of
from pyprune.models.original_sizes import OriginalSizes
from pyprune.models.pruning import Pruning

T = TypeVar("T")

# Sizes that no pruning changes.
_SHARED = ("hidden_size", "vocab_size", "head_dim", "rms_norm_eps")


def with_record(decoder: Decoder, path: Path) -> Decoder:
    """The decoder of a directory with its record, its original configuration and its blocks' original indices, where it
    was pruned.

    InputError, naming the file, for a record that is not of this model: `Pruning.from_dict` and `check_indices` say
    what is accepted.
    """
    record_file, original_file = path / "pruning.json", path / "original_config.json"
    if not record_file.is_file():
        return decoder
    original = _original_config(original_file, decoder.config)
    pruning = _recorded_pruning(record_file, OriginalSizes.from_config(original, str(original_file)), decoder.name)
    kept = [index for index in range(original["num_hidden_layers"]) if index not in pruning.blocks]
    if len(kept) != len(decoder.blocks):
        raise InputError(
            f"{record_file}: leaves {len(kept)} of {original['num_hidden_layers']} blocks, but the checkpoint holds"
            f" {len(decoder.blocks)}"
        )
    decoder = decoder.map_blocks(lambda block: replace(block, index=kept[block.index]))
    windows = family_of(original["model_type"], str(original_file)).windows(original)
    for block in decoder.sizes().blocks:
        if block.mha is not None and block.mha.window != windows[block.index]:
            raise InputError(
                f"{original_file}: block {block.index} has a window of {windows[block.index]}; in config.json it has"
                f" {block.mha.window}"
            )
    if decoder.device.type != "meta":
        pruning = replace(pruning, compensation=pruning.compensation.read_values(path / FILE))
    return replace(decoder, config=original, pruning=pruning)


def with_record_that_fits(add_record: Callable[[T, Path], T], decoder: T, path: Path) -> T:
    """`add_record(decoder, path)` for a loaded model, which may have been changed since it was read from the directory
    `path`: where the record is not of the present model, the decoder as it is, with a warning."""
    try:
        return add_record(decoder, path)
    except InputError as error:
        warnings.warn(
            f"{error}; the record is left out: indices of blocks are those of the present model", stacklevel=4
        )
        return decoder


def json_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file; InputError naming the file for anything else."""
    data = read_json(file)
    if not isinstance(data, dict):
        raise InputError(f"{file}: not a JSON object")
    return data


def _original_config(file: Path, present: Mapping[str, Any]) -> dict[str, Any]:
    """The original model's configuration; InputError when it contradicts the present one, which the weights have
    confirmed."""
    original = json_object(file)
    family = family_of(original.get("model_type"), str(file))
    if present["model_type"] not in (family.written_as or family.model_types):
        raise InputError(f"{file}: model_type {original['model_type']} is of another family than config.json")
    family.check(original, str(file))
    for key in _SHARED:
        if original[key] != present[key]:
            raise InputError(f"{file}: {key} is {original[key]!r}; the checkpoint's weights and config.json have"
                             f" {present[key]!r}")  # fmt: skip
    return original


def _recorded_pruning(file: Path, sizes: OriginalSizes, model: str) -> Pruning:
    data = json_object(file)
    try:
        pruning = Pruning.from_dict(data)
        pruning.check_indices(sizes, model)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    return pruning
