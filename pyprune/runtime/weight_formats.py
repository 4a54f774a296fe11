"""A decoder whose matrices are stored in a weight format: what `Engine(weight_format=...)` runs.

The formats are in `pyprune/ops/weight_formats.py`. The exponents of trained weights hardly differ within a row
(DFloat11, arXiv:2504.11651, finds 2.6 bits of information in the 8 of a bfloat16), so "bf16-lossless12" has 4 bits to
say which one a weight has. Decoding a few sequences is reading weights from memory, and three quarters of the bytes are
read in three quarters of the time.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.models.decoder import Decoder
from pyprune.models.pages import Pages
from pyprune.ops.weight_formats import FORMATS, LOSSLESS12, NAMES, PLAIN, WeightFormat
from pyprune.runtime import memory


def require_format(
    decoder: Decoder, weight_format: str | bool | None, compress: bool | None = None, device: str | None = None
) -> WeightFormat | None:
    """The format that is asked for; None where the weights stay as they are.

    InputError for an unknown name, and unless the decoder's weights (or their sizes, where those alone are known) are
    of the format's dtype and, for other formats than plain ones, on a CPU. device: where they will be, if not where
    they are. `compress=True`, or True in its old place, is the old name of "bf16-lossless12".
    """
    if isinstance(weight_format, bool):
        weight_format, compress = None, weight_format
    if compress is not None:
        new = LOSSLESS12.name if compress else None
        warnings.warn(f"compress={compress} is now weight_format={new!r}", DeprecationWarning, stacklevel=3)
        weight_format = weight_format or new
    if weight_format is None:
        return None
    if weight_format not in NAMES:
        raise InputError(f"weight_format {weight_format!r}: one of {', '.join(NAMES)} is expected")
    entry = FORMATS.get(weight_format)
    place = device or decoder.device.type
    values = PLAIN[weight_format] if entry is None else entry.values
    if decoder.dtype != values or (entry is not None and place not in ("cpu", "meta")):
        expected = str(values).removeprefix("torch.") + (" weights" if entry is None else " weights on a CPU")
        raise InputError(
            f"weight_format {weight_format}: {decoder.name} has {str(decoder.dtype).removeprefix('torch.')} weights on "
            f"{place}; {expected} are accepted"
        )
    return entry


@torch.no_grad()
def converted(decoder: Decoder, weight_format: WeightFormat) -> Decoder:
    """`decoder` with every matrix stored in a format, for the operators alone: whatever reads or writes weights itself
    would take them for numbers. A matrix that would not get smaller stays as it is, as one of few columns. Nothing
    shares memory with the old weights, whose pages are given back whole."""
    pages = Pages()

    def convert(tensor: Tensor) -> Tensor:
        if weight_format.accepts(tensor):
            stored = weight_format.encoded(tensor)
            if stored.nbytes < tensor.nbytes:
                return pages.copy(stored)
        return pages.copy(tensor)

    smaller = decoder.map(convert)
    memory.give_back()
    return smaller


def sizes_of(decoder: Decoder) -> Decoder:
    """`decoder` without its weights: everything that is known of them but their values."""
    return decoder.map(lambda tensor: tensor.to("meta"))


def converted_bytes(decoder: Decoder, weight_format: WeightFormat) -> int:
    """What all tensors of `converted(decoder, weight_format)` take, from sizes alone: for "bf16-lossless12" exact but
    for the exceptions, of which as many are counted as normally distributed weights have."""
    return sum(_bytes(tensor, weight_format) for _, tensor in decoder.tensors())


def converting_bytes(decoder: Decoder, weight_format: WeightFormat) -> int:
    """The most that `converted(decoder, weight_format)` takes beside the old weights: the new ones, and the largest one
    twice."""
    largest = max(_bytes(tensor, weight_format) for _, tensor in decoder.tensors())
    return converted_bytes(decoder, weight_format) + largest


def _bytes(tensor: Tensor, weight_format: WeightFormat) -> int:
    plain = tensor.numel() * tensor.element_size()
    if not weight_format.accepts(tensor):
        return plain
    rows, columns = tensor.shape
    return min(plain, rows * weight_format.row_bytes(columns))
