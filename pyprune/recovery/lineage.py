"""Whether a pruned model was made from an original, and what of that went."""

from __future__ import annotations

from typing import Any

import torch

from pyprune.errors import InputError
from pyprune.models import as_decoder
from pyprune.models.decoder import Block, Decoder
from pyprune.models.pruning import Pruning, recorded
from pyprune.pruning.apply import apply
from pyprune.pruning.index_map import index_map
from pyprune.recovery.streams import channels_of, equal, sublayers_of


def pruned_from(original: Decoder, pruned: Any) -> Decoder:
    """The pruned decoder; InputError unless it was made from the original."""
    if isinstance(pruned, Pruning):
        if not pruned:
            raise InputError("repair: the pruning removes nothing; a pruning or a pruned model is expected")
        return apply(original, pruned)
    decoder = as_decoder(pruned)
    if decoder.pruning is None:
        raise InputError(f"{decoder.name}: has no pruning record; a model that pyprune pruned and saved is expected")
    if decoder.device != original.device:
        raise InputError(
            f"{decoder.name}: is on {decoder.device}, {original.name} on {original.device}; the same device is expected"
        )
    embedding, other = original.embedding, decoder.embedding
    if embedding.shape != other.shape or not torch.equal(embedding.to(other.dtype), other.to(embedding.device)):
        raise _not_of(decoder, original, "its embedding differs")
    if recorded(original).blocks and not set(recorded(original).blocks) <= set(decoder.pruning.blocks):
        raise _not_of(decoder, original, "the original lacks blocks that it has")
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        if original.config.get(key) != decoder.config.get(key):
            raise _not_of(decoder, original, f"{key} {decoder.config.get(key)}, not {original.config.get(key)}")
    present = dict(sublayers_of(original.sizes().blocks))
    for place, _ in sublayers_of(decoder.sizes().blocks):
        if place not in present:
            raise _not_of(decoder, original, f"the original lacks {place[1]} of block {place[0]}")
    before = {block.index: block for block in index_map(original)}
    for block, held in zip(index_map(decoder), decoder.sizes().blocks, strict=True):
        for what, kept, full in (
            ("heads", block.heads, before[block.index].heads), ("neurons", block.neurons, before[block.index].neurons)
        ):  # fmt: skip
            if not set(kept or ()) <= set(full or ()):
                lost = min(set(kept or ()) - set(full or ()))
                raise _not_of(decoder, original, f"the original lacks {what[:-1]} {lost} of block {block.index}")
        if held.mha is not None and held.mha.heads != len(block.heads or ()):
            raise _not_of(decoder, original, f"{held.mha.heads} heads in block {block.index}, not as its record says")
        if held.ffn is not None and held.ffn.width < len(block.neurons or ()):
            raise _not_of(decoder, original, f"{held.ffn.width} neurons in block {block.index}, not as its record says")
    if only_narrowed(original, decoder) and not channels_of(original, decoder):
        raise InputError(f"{decoder.name}: has all units of {original.name}; a model that lost some is expected")
    if original.device.type != "cpu" and original.dtype != decoder.dtype:
        raise InputError(
            f"{decoder.name}: is in {decoder.dtype}, {original.name} in {original.dtype}; on {original.device.type} the"
            " same dtype is expected"
        )
    return decoder


def _not_of(pruned: Decoder, original: Decoder, reason: str) -> InputError:
    return InputError(f"{pruned.name}: was not pruned from {original.name}: {reason}")


def begins_at_block_0(original: Decoder, pruned: Decoder) -> bool:
    """Whether what stands first in the original is gone, so that nothing stands before it."""
    first = next(place for place, _ in sublayers_of(original.sizes().blocks))
    return first not in dict(sublayers_of(pruned.sizes().blocks))


def only_narrowed(original: Decoder, pruned: Decoder) -> bool:
    of_original, of_pruned = (dict(sublayers_of(decoder.sizes().blocks)) for decoder in (original, pruned))
    return of_original.keys() == of_pruned.keys()


def equal_prefix(original: Decoder, decoder: Decoder) -> int:
    """How many leading blocks of both hold the same values, rounded to `decoder`'s dtype: the place of the first cut,
    or of the first weights that a repair or a training changed. 0 where the embeddings differ."""
    first, second = original.embedding, decoder.embedding
    if first.shape != second.shape or not torch.equal(first.to(second.dtype), second.to(first.device)):
        return 0
    count = 0
    for block, other in zip(original.blocks, decoder.blocks, strict=False):
        if block.index != other.index or not equal_blocks(block, other, decoder.dtype):
            break
        count += 1
    return count


def equal_blocks(block: Block, other: Block, dtype: torch.dtype) -> bool:
    """Whether two blocks hold the same values, the first one rounded to `dtype`."""
    pairs = ((block.mha, other.mha), (block.ffn, other.ffn))
    return all(
        sublayer is counterpart
        or (sublayer is not None and counterpart is not None and equal(sublayer, counterpart, dtype))
        for sublayer, counterpart in pairs
    )
