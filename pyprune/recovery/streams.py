"""The original and the pruned model over the calibration text, sublayer by sublayer, in one pass.

Each weight is read once. The original runs ahead through what was removed, so that a sublayer of the pruned model knows
what its stream should be: the original's at the place where the next sublayer that stays begins. The pruned model goes
on from its own stream, with whatever its projections have become meanwhile. While both are the same they share one
stream, and nothing is computed twice. Behind the last stage that was asked for nothing is computed. In memory are the
two streams and the inputs of one projection.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pyprune import ops
from pyprune.models.decoder import FFN, MHA, Block, Decoder, Linear
from pyprune.pruning.index_map import index_map
from pyprune.pruning.layerwise import chunk_of
from pyprune.regression.states import States
from pyprune.runtime import sequence

Place = tuple[int, str]
"""A sublayer: its block's original index, and "mha" or "ffn"."""


@dataclass
class Stage:
    """A sublayer of the pruned model whose stream differs from the original's, or has something removed behind it.

    `sublayer`: with the weights so far. `inputs [S, T, width]`: of its output projection, o or down, and `before
    [S, T, hidden]`: the stream it adds to, both the pruned model's. `target [S, T, hidden]`: the original's stream
    behind it and behind all that was removed after it. `original`: the sublayer it was in the original.
    `channels`: which inputs of the projection there stay, in order (padding has none); None where all do.
    `original_inputs`: of the projection there, where some went and they were asked for. `is_cut`: something was removed
    behind.
    Whoever gets a stage may put another projection of the same shapes into `projection`, or other weights into
    `sublayer`; the stream then goes on with those.
    """

    place: Place
    sublayer: MHA | FFN
    original: MHA | FFN
    is_cut: bool
    before: Tensor
    target: Tensor
    inputs: Tensor
    channels: Tensor | None
    original_inputs: Tensor | None
    chunks: Sequence[slice]
    projection: Linear

    @property
    def is_narrowed(self) -> bool:
        """Whether heads or neurons of it went."""
        return self.channels is not None

    def outputs(self, chunk: slice) -> Tensor:
        """The stream behind it `[N, T, hidden]`, by its present projection."""
        return ops.linear_residual(self.inputs[chunk], self.projection.weight, self.projection.bias, self.before[chunk])


@dataclass
class _Waiting:
    """A sublayer that waits for its target."""

    place: Place
    original: MHA | FFN
    channels: Tensor | None
    inputs: Tensor | None = None
    is_cut: bool = False


@dataclass
class Streams:
    """The pass of `original` and `pruned` over `input_ids [S, T]`; `stages` is walked once, then `result` is there.

    keeps_original_inputs: whether stages of narrowed sublayers come with the original's inputs. ends_at_change: whether
    the pass ends with the last stage that is a cut or narrowed.
    """

    original: Decoder
    pruned: Decoder
    input_ids: Tensor
    memory: int | None = None
    keeps_original_inputs: bool = False
    ends_at_change: bool = False
    _sublayers: dict[Place, MHA | FFN] = field(default_factory=dict)
    _last: Place | None = None  # where the pass ends

    def result(self) -> Decoder:
        """The pruned model with the projections that the stages were given."""
        return with_sublayers(self.pruned, self._sublayers)

    def change_rest(self, change: Callable[[Linear], Linear]) -> None:
        """Change the output projections behind the last stage, once the stages have been walked."""
        places = list(self._sublayers)
        for place in places[places.index(self._last) + 1 :] if self._last is not None else ():
            sublayer = self._sublayers[place]
            self._sublayers[place] = with_projection(sublayer, change(output_projection(sublayer)))

    def stages(self) -> Iterator[Stage]:
        """The stages in order of depth. The caller has checked that the two models belong together (`pruned_from`)."""
        samples, tokens = self.input_ids.shape
        hidden, pruned = self.original.hidden_size, self.pruned
        states = States(sequence.activation_dtype(self.original), self.original.device, self.memory)
        self._sublayers = dict(sublayers_of(pruned.blocks))
        step = chunk_of(self.original.sizes(), tokens)
        chunks = [slice(start, min(start + step, samples)) for start in range(0, samples, step)]
        rotation = self.original.rope.tables(tokens, prompt=tokens)
        teacher, student = (states.empty(samples, tokens, hidden) for _ in range(2))
        for chunk in chunks:
            teacher[chunk] = sequence.embed(self.original, self.input_ids[chunk])
        widths = [output_projection(sublayer).weight.shape[1] for sublayer in self._sublayers.values()]
        inputs = states.empty(samples * tokens * max(widths))
        kept = states.empty(samples * tokens * _widest(self.original)) if self.keeps_original_inputs else None
        places = [place for place, _ in sublayers_of(self.original.sizes().blocks)]
        kept_channels = channels_of(self.original, pruned)
        self._last = self._last_place(places, kept_channels)
        same, waiting = True, None

        def resolved(waiting: _Waiting) -> Iterator[Stage]:
            sublayer = self._sublayers[waiting.place]
            shape = samples, tokens, output_projection(sublayer).weight.shape[1]
            into = inputs[: samples * tokens * shape[2]].view(shape)
            for chunk in chunks:
                into[chunk] = projection_inputs(sublayer, student[chunk], rotation, self.original.eps)
            stage = Stage(
                waiting.place, sublayer, waiting.original, waiting.is_cut, student, teacher, into,
                waiting.channels, waiting.inputs,
                chunks, output_projection(sublayer),
            )  # fmt: skip
            yield stage
            self._sublayers[waiting.place] = with_projection(sublayer, stage.projection)
            for chunk in chunks if waiting.place != self._last else ():
                student[chunk] = stage.outputs(chunk)

        for place, sublayer in sublayers_of(self.original.blocks):
            is_kept = place in self._sublayers
            if waiting is not None and is_kept:
                yield from resolved(waiting)
                if waiting.place == self._last:
                    return
                waiting = None
            if same:
                behind = places[places.index(place) + 1 :][:1]
                nothing_cut = is_kept and all(following in self._sublayers for following in behind)
                same = nothing_cut and equal(sublayer, self._sublayers[place], pruned.dtype)
                for chunk in chunks if not same else ():
                    student[chunk] = teacher[chunk]
            if is_kept and not same:
                waiting = _Waiting(place, sublayer, kept_channels.get(place))
                if kept is not None and waiting.channels is not None:
                    waiting.inputs = kept[: samples * tokens * _width(sublayer)].view(samples, tokens, -1)
            elif waiting is not None:
                waiting.is_cut = True
            projection = output_projection(sublayer)
            for chunk in chunks:
                x = teacher[chunk]
                into = projection_inputs(sublayer, x, rotation, self.original.eps)
                if is_kept and waiting is not None and waiting.inputs is not None:
                    waiting.inputs[chunk] = into
                teacher[chunk] = ops.linear_residual(into, projection.weight, projection.bias, x)
        if waiting is not None:
            yield from resolved(waiting)

    def _last_place(self, places: Sequence[Place], narrowed: Iterable[Place]) -> Place | None:
        """The sublayer of the last stage that is asked for."""
        if not self.ends_at_change:
            return next(reversed(self._sublayers), None)
        changed = set(narrowed)
        changed |= {place for place, behind in itertools.pairwise(places) if behind not in self._sublayers}
        return next((place for place in reversed(self._sublayers) if place in changed), None)


def with_sublayers(decoder: Decoder, sublayers: Mapping[Place, MHA | FFN]) -> Decoder:
    """The decoder with these sublayers in its blocks."""
    blocks = tuple(
        Block(block.index, sublayers.get((block.index, "mha")), sublayers.get((block.index, "ffn")))  # type: ignore[arg-type]  # each kind under its name
        for block in decoder.blocks
    )
    return replace(decoder, blocks=blocks)


def sublayers_of(blocks: Iterable[Block]) -> Iterator[tuple[Place, MHA | FFN]]:
    """The sublayers that are there, in order of depth."""
    for block in blocks:
        if block.mha is not None:
            yield (block.index, "mha"), block.mha
        if block.ffn is not None:
            yield (block.index, "ffn"), block.ffn


def channels_of(original: Decoder, pruned: Decoder) -> dict[Place, Tensor]:
    """Of each sublayer that lost heads or neurons: which inputs of its output projection in `original` stay."""
    before, result = {block.index: block for block in index_map(original)}, {}
    head_dims = {block.index: block.mha.head_dim for block in original.sizes().blocks if block.mha is not None}
    for block in index_map(pruned):
        full = before[block.index]
        if block.neurons is not None and full.neurons is not None and block.neurons != full.neurons:
            result[block.index, "ffn"] = _positions(block.neurons, full.neurons, original.device)
        if block.heads is not None and full.heads is not None and block.heads != full.heads:
            size = head_dims[block.index]
            starts = _positions(block.heads, full.heads, original.device)[:, None] * size
            result[block.index, "mha"] = (starts + torch.arange(size, device=original.device)).flatten()
    return result


def _positions(kept: Sequence[int], present: Sequence[int], device: torch.device) -> Tensor:
    place = {index: position for position, index in enumerate(present)}
    return torch.tensor([place[index] for index in kept], dtype=torch.long, device=device)


def projection_inputs(sublayer: MHA | FFN, x: Tensor, rotation: tuple[Tensor, Tensor], eps: float) -> Tensor:
    """Inputs of o `[N, T, heads*head_dim]` or of down `[N, T, width]`, of the stream x `[N, T, hidden]`."""
    if isinstance(sublayer, MHA):
        return sequence.attention_context(sublayer, x, *rotation, eps)
    return sequence.ffn_activation(sublayer, x, eps)


def wide(values: Tensor) -> Tensor:
    """In float32 at least: differences of streams, and sums of squares, are not for 16 bits."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def output_projection(sublayer: MHA | FFN) -> Linear:
    """What writes to the stream: o of an attention, down of an FFN."""
    return sublayer.o if isinstance(sublayer, MHA) else sublayer.down


def with_projection(sublayer: MHA | FFN, projection: Linear) -> MHA | FFN:
    """The sublayer with another output projection."""
    if projection is output_projection(sublayer):
        return sublayer
    return replace(sublayer, o=projection) if isinstance(sublayer, MHA) else replace(sublayer, down=projection)


def equal(sublayer: MHA | FFN, other: MHA | FFN, dtype: torch.dtype) -> bool:
    """Whether two sublayers hold the same values, the first one rounded to `dtype`."""
    if sublayer is other:
        return True
    left, right = dict(sublayer.tensors()), dict(other.tensors())
    return left.keys() == right.keys() and all(
        left[name].shape == right[name].shape and torch.equal(left[name].to(dtype), right[name].to(left[name].device))
        for name in left
    )


def _width(sublayer: MHA | FFN) -> int:
    return output_projection(sublayer).weight.shape[1]


def _widest(decoder: Decoder) -> int:
    return max(_width(sublayer) for _, sublayer in sublayers_of(decoder.sizes().blocks))
