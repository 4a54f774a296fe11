"""Token ids that were made elsewhere: tensors, NumPy files and safetensors files. Nothing is unpickled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

from pyprune.errors import InputError
from pyprune.models.tensors import one_line
from pyprune.scoring.calibration.fingerprint import fingerprint

SUFFIXES = (".npy", ".safetensors")


def token_rows(ids: Any, name: str, mask: Any = None) -> list[numpy.ndarray]:
    """Documents of ids: the rows of `[documents, tokens]`, or the one document `[tokens]`, int64.

    `mask`: of the same shape, 0 where a token is padding, which is left out. InputError for anything but whole numbers
    in one or two dimensions.
    """
    array = numpy.asarray(ids.cpu() if isinstance(ids, torch.Tensor) else ids)
    if array.ndim not in (1, 2) or array.dtype.kind not in "iu" or not array.size:
        kind = f"{array.dtype} {list(array.shape)}"
        raise InputError(f"{name}: {kind} given; whole numbers [tokens] or [documents, tokens] are expected")
    rows = numpy.atleast_2d(array).astype(numpy.int64)
    if mask is None:
        return list(rows)
    tokens = numpy.atleast_2d(numpy.asarray(mask)) != 0
    if tokens.shape != rows.shape:
        raise InputError(f"{name}: a mask {list(tokens.shape)} for ids {list(rows.shape)}; one shape is expected")
    documents = [row[is_token] for row, is_token in zip(rows, tokens, strict=True) if is_token.any()]
    if not documents:
        raise InputError(f"{name}: the mask leaves no token; at least one is expected")
    return documents


def read_token_file(path: str) -> list[numpy.ndarray]:
    """The documents of a `.npy` file, or of the tensor `input_ids` (or the only one) of a safetensors file.

    An `attention_mask` beside `input_ids` leaves padding out. InputError when the file cannot be read.
    """
    try:
        tensors = {"input_ids": numpy.load(path, allow_pickle=False)} if path.endswith(".npy") else _safetensors(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; a readable file of token ids is expected") from None
    except Exception as error:  # each format has errors of its own; one that wants unpickling is among NumPy's
        raise InputError(f"{path}: not a file of token ids ({one_line(error)[:200]})") from None
    mask = tensors.pop("attention_mask", None)
    if "input_ids" not in tensors and len(tensors) != 1:
        raise InputError(f"{path}: holds {', '.join(tensors) or 'nothing'}; a tensor named input_ids is expected")
    return token_rows(tensors.get("input_ids", next(iter(tensors.values()))), Path(path).name, mask)


@dataclass(frozen=True)
class LabelledSamples:
    """Samples `[S, T]` with their mask (bool, None where nothing is padding), labels, and fingerprint."""

    input_ids: torch.Tensor
    mask: torch.Tensor | None
    labels: torch.Tensor
    fingerprint: dict[str, Any]


def read_labelled(path: str) -> LabelledSamples:
    """The tensors `input_ids`, `labels` and, where there is one, `attention_mask` of a safetensors file, each `[S, T]`.

    InputError when the file cannot be read or holds anything else.
    """
    if not path.endswith(".safetensors"):
        raise InputError(f"{path}: a .safetensors file of input_ids and labels is expected")
    try:
        tensors = _safetensors(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; a readable safetensors file is expected") from None
    except Exception as error:  # the format has errors of its own
        raise InputError(f"{path}: not a safetensors file ({one_line(error)[:200]})") from None
    for name in ("input_ids", "labels"):
        if name not in tensors:
            raise InputError(f"{path}: holds {', '.join(tensors) or 'nothing'}; input_ids and labels are expected")
    ids = tensors["input_ids"]
    for name, array in tensors.items():
        if array.ndim != 2 or array.shape != ids.shape or array.dtype.kind not in "iub":
            given = f"{name} {array.dtype} {list(array.shape)}"
            raise InputError(f"{path}: {given}; whole numbers [samples, tokens] of one shape are expected")
    mask = tensors.get("attention_mask")
    input_ids = torch.from_numpy(ids.astype(numpy.int64))
    return LabelledSamples(
        input_ids,
        None if mask is None else torch.from_numpy(mask != 0),
        torch.from_numpy(tensors["labels"].astype(numpy.int64)),
        fingerprint(input_ids, source=Path(path).name),
    )


def _safetensors(path: str) -> dict[str, numpy.ndarray]:
    from safetensors.numpy import load_file

    return load_file(path)
