"""Make a pruning permanent: a smaller decoder whose untouched tensors are the original's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar, overload

import torch
from torch import Tensor

from pyprune.checks import is_int
from pyprune.errors import InputError
from pyprune.models.blocks import FFN, MHA, Block, Linear
from pyprune.models.compensation import Compensation
from pyprune.models.decoder import Decoder
from pyprune.models.load_any import AnyDecoder
from pyprune.models.original_sizes import OriginalSizes
from pyprune.models.pages import Pages
from pyprune.models.pruning import Pruning, recorded
from pyprune.models.transformers_decoder import TransformersDecoder

Sublayer = TypeVar("Sublayer", MHA, FFN)


@overload
def apply(decoder: Decoder, pruning: Pruning) -> Decoder: ...
@overload
def apply(decoder: TransformersDecoder, pruning: Pruning) -> TransformersDecoder: ...


def apply(decoder: AnyDecoder, pruning: Pruning) -> AnyDecoder:
    """The decoder without what `pruning` removes; `decoder` itself is left as it is.

    Indices are the original model's, also when `decoder` is already pruned: then both prunings are in force, and what
    is already gone may be named again. Tensors that lose nothing are shared, narrowed ones are copies: contiguous on a
    CPU, on a GPU with rows that start on 16 bytes (`Decoder.to`).
    What the pruning adds to biases is added once, to a new bias where the projection has none.
    With `pad_to`, each FFN gets zero rows in gate and up and zero columns in down, at the end, up to the multiple. That
    is exact, because silu(0) * 0 = 0.
    InputError when the pruning does not fit (`Pruning.check`; for a `TransformersDecoder` its `without`).
    """
    if isinstance(decoder, TransformersDecoder):
        return decoder.without(pruning)
    pruning.check(decoder)
    after, pages = _total(decoder, pruning), Pages()
    blocks = tuple(
        _prune_block(decoder, block, after, pages) for block in decoder.blocks if block.index not in after.blocks
    )
    if after.pad_to == 1:
        after = replace(after, pad_to=None)
    return replace(decoder, blocks=blocks, pruning=after if after else None)


def pruned_block(decoder: Decoder, block: Block, pruning: Pruning) -> Block:
    """One block of the decoder as `apply` would leave it, for a pruning that has been checked and does not take it
    whole."""
    return _prune_block(decoder, block, _total(decoder, pruning), None)


def pad(decoder: Decoder, multiple: int) -> Decoder:
    """The decoder with every FFN width rounded up to `multiple` by zero neurons; an older padding is replaced.

    `multiple` 1 takes padding away. InputError for a multiple below 1.
    """
    if not is_int(multiple) or multiple < 1:
        raise InputError(f"pad: multiple {multiple!r}: a whole number from 1 is expected")
    return apply(decoder, Pruning(pad_to=multiple))


def narrow_mha(mha: MHA, groups: Sequence[int], heads: Sequence[int] | None = None) -> MHA:
    """The attention sublayer with only these of its present KV groups: each KV head's rows of k and v, its query heads'
    rows of q and columns of o. The sublayer itself when all stay.

    `heads`: which of the present query heads stay, as many in each of these groups, in order (default: all of them).
    """
    if heads is None:
        heads = [head for group in groups for head in range(group * mha.group, (group + 1) * mha.group)]
    if len(groups) == mha.kv_heads and len(heads) == mha.heads:
        return mha
    kv_rows = _spread(groups, mha.head_dim, mha.k.weight.device)
    q_rows = _spread(heads, mha.head_dim, mha.q.weight.device)
    all_groups = len(groups) == mha.kv_heads
    return replace(
        mha,
        q=_rows(mha.q, q_rows),
        k=mha.k if all_groups else _rows(mha.k, kv_rows),
        v=mha.v if all_groups else _rows(mha.v, kv_rows),
        o=Linear(mha.o.weight.index_select(1, q_rows), mha.o.bias),
        heads=len(heads),
        kv_heads=len(groups),
    )


def narrow_ffn(ffn: FFN, neurons: Sequence[int], pad_to: int | None = None) -> FFN:
    """The FFN sublayer with only these of its present neurons, then zero neurons up to the multiple `pad_to`.

    The sublayer itself when nothing changes.
    """
    padded = padded_width(len(neurons), pad_to)
    if len(neurons) == padded == ffn.width:
        return ffn
    keep = torch.tensor(list(neurons), dtype=torch.long, device=ffn.gate.weight.device)
    gate, up = (_rows(part, keep, padded) for part in (ffn.gate, ffn.up))
    down = ffn.down.weight.new_zeros(ffn.down.weight.shape[0], padded)
    down[:, : len(keep)] = ffn.down.weight.index_select(1, keep)
    return FFN(ffn.norm, gate, up, Linear(down, ffn.down.bias))


def padded_width(width: int, pad_to: int | None) -> int:
    """`width` rounded up to a multiple of `pad_to`."""
    multiple = pad_to or 1
    return -(-width // multiple) * multiple


def kept(size: int, gone: Sequence[int]) -> list[int]:
    """The original indices that stay, of `size` in all, in order."""
    removed = set(gone)
    return [index for index in range(size) if index not in removed]


def _total(decoder: Decoder, pruning: Pruning) -> Pruning:
    """All that is gone from the original once `pruning` is applied to a decoder."""
    total = recorded(decoder).joined(pruning)
    return replace(total, heads=_heads_alone(total, OriginalSizes.of(decoder)))


def _heads_alone(pruning: Pruning, sizes: OriginalSizes) -> dict[int, tuple[int, ...]]:
    """The query heads that go by themselves: those of a KV group that goes are not named again."""
    return {
        layer: tuple(head for head in heads if head // sizes.group not in pruning.kv_groups.get(layer, ()))
        for layer, heads in pruning.heads.items()
    }


def _prune_block(decoder: Decoder, block: Block, after: Pruning, pages: Pages | None) -> Block:
    """The block when all that is gone from the original is `after`."""
    added = after.compensation.beyond(recorded(decoder).compensation)
    mha = None if block.index in after.mha else block.mha
    ffn = None if block.index in after.ffn else block.ffn
    if mha is not None:
        mha = _prune_mha(decoder, block.index, mha, after)
        o = _added(mha.o, f"blocks.{block.index}.o.bias", added)
        mha = mha if o is mha.o else replace(mha, o=o)
    if ffn is not None:
        ffn = _prune_ffn(decoder, block.index, ffn, after)
        down = _added(ffn.down, f"blocks.{block.index}.down.bias", added)
        ffn = ffn if down is ffn.down else replace(ffn, down=down)
    if mha is block.mha and ffn is block.ffn:
        return block
    return Block(block.index, _on_pages(mha, block.mha, pages), _on_pages(ffn, block.ffn, pages))


def _prune_mha(decoder: Decoder, index: int, mha: MHA, after: Pruning) -> MHA:
    before, sizes = recorded(decoder), OriginalSizes.of(decoder)
    present_groups, kept_groups = before.heads_by_group(index, sizes), after.heads_by_group(index, sizes)
    if present_groups == kept_groups:  # also of a model whose blocks differ without a record that says in what
        return mha
    present = [head for heads in present_groups.values() for head in heads]
    _agree(decoder, mha.kv_heads, {len(present_groups)}, f"KV heads in block {index}")
    _agree(decoder, mha.heads, {len(present)}, f"query heads in block {index}")
    kept_heads = {head for heads in kept_groups.values() for head in heads}
    return narrow_mha(
        mha,
        [place for place, group in enumerate(present_groups) if group in kept_groups],
        [place for place, head in enumerate(present) if head in kept_heads],
    )


def _prune_ffn(decoder: Decoder, index: int, ffn: FFN, after: Pruning) -> FFN:
    before = recorded(decoder)
    gone_before, gone = before.neurons.get(index, ()), set(after.neurons.get(index, ()))
    present = kept(OriginalSizes.of(decoder).width, gone_before)
    expected = {len(present), padded_width(len(present), before.pad_to)}
    if ffn.width not in expected and gone == set(gone_before):  # its blocks differ, and no record says in what
        if (before.pad_to or 1) == (after.pad_to or 1):
            return ffn
        if (before.pad_to or 1) == 1:  # no neuron is padding
            return narrow_ffn(ffn, range(ffn.width), after.pad_to)
    _agree(decoder, ffn.width, expected, f"neurons in block {index}")
    stay = [place for place, neuron in enumerate(present) if neuron not in gone]
    # A sublayer that keeps its neurons and its padding is shared; otherwise the old padding, which stands after the
    # real neurons, is left behind here and made anew.
    if len(stay) < len(present) or padded_width(len(stay), after.pad_to) != ffn.width:
        return narrow_ffn(ffn, stay, after.pad_to)
    return ffn


def _added(linear: Linear, name: str, added: Compensation) -> Linear:
    """The projection with what is added to its bias, float32 sums rounded once to its dtype."""
    if name not in added:
        return linear
    bias = added[name].to(linear.weight.device)
    if linear.bias is not None:
        bias = bias + linear.bias
    return Linear(linear.weight, bias.to(linear.weight.dtype))


def _on_pages(sublayer: Sublayer | None, original: Sublayer | None, pages: Pages | None) -> Sublayer | None:
    """The sublayer with what it does not share with the original on `pages`, as a loaded model's, so that it is read
    as fast; where it lies already without pages."""
    if pages is None or sublayer is None or original is None or sublayer is original:
        return sublayer
    shared = {id(tensor) for _, tensor in original.tensors()}

    def placed(tensor: Tensor) -> Tensor:
        return tensor if id(tensor) in shared else pages.move(tensor, None, None, share=False)

    return sublayer.map(placed)


def _agree(decoder: Decoder, count: int, expected: set[int], what: str) -> None:
    if count not in expected:
        accepted = " or ".join(str(number) for number in sorted(expected))
        raise InputError(
            f"{decoder.name}: {count} {what}; {accepted} are expected from its configuration and pruning record"
        )


def _spread(places: Sequence[int], size: int, device: torch.device) -> Tensor:
    """The rows of these places when each holds `size` rows."""
    starts = torch.tensor(list(places), dtype=torch.long, device=device) * size
    return (starts[:, None] + torch.arange(size, device=device)).flatten()


def _rows(linear: Linear, rows: Tensor, padded: int | None = None) -> Linear:
    """The projection with only these output rows, then zero rows up to `padded`."""

    def take(tensor: Tensor) -> Tensor:
        if padded is None or padded == len(rows):
            return tensor.index_select(0, rows)
        result = tensor.new_zeros(padded, *tensor.shape[1:])
        result[: len(rows)] = tensor.index_select(0, rows)
        return result

    return Linear(take(linear.weight), None if linear.bias is None else take(linear.bias))
