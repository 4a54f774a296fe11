"""A pruning as data: what is removed from a model, in the original model's indices. No torch here."""

from __future__ import annotations

import contextlib
import itertools
import operator
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

from pyprune.checks import is_whole
from pyprune.errors import InputError
from pyprune.files import json_text, read_json_as, whole_file
from pyprune.models.compensation import FILE, Compensation
from pyprune.models.original_sizes import Configured, OriginalSizes

FORMAT = "pyprune-pruning/1"
_JOINT = " | "


@dataclass(frozen=True)
class Pruning:
    """What is removed from a model; every index is the original, unpruned model's.

    `blocks`, `mha`, `ffn`: indices of blocks that go whole, or lose their attention or FFN sublayer.
    `kv_groups`: block index -> KV heads that go, each with the query heads that read it.
    `heads`: block index -> query heads that go by themselves: as many in every KV group that stays, so that the groups
    stay equal in size.
    `neurons`: block index -> FFN channels that go (a row of gate and of up, a column of down).
    `pad_to`: FFN widths that remain are rounded up to this multiple with zeros; None leaves padding as it is, 1 means
    none.
    `compensation`: what is added to biases, "blocks.3.o.bias" -> `[hidden]` (`models.compensation`).
    `model`, `made_by`: names, for the record.

    Always in normal form: sorted; a sublayer that goes takes its groups or neurons with it; a block both of whose
    sublayers go is in `blocks` alone. So equal removals are equal objects.
    InputError for a negative index, one given twice, or anything that is not a whole number.
    """

    model: str = ""
    blocks: tuple[int, ...] = ()
    mha: tuple[int, ...] = ()
    ffn: tuple[int, ...] = ()
    kv_groups: Mapping[int, tuple[int, ...]] = field(default_factory=dict, hash=False)
    neurons: Mapping[int, tuple[int, ...]] = field(default_factory=dict, hash=False)
    pad_to: int | None = None
    made_by: str = ""
    heads: Mapping[int, tuple[int, ...]] = field(default_factory=dict, hash=False)
    compensation: Compensation = field(default_factory=Compensation, hash=False)

    def __post_init__(self) -> None:
        for name in ("model", "made_by"):
            if not isinstance(getattr(self, name), str):
                raise InputError(f"pruning: {name} {getattr(self, name)!r}: a string is expected")
        if self.pad_to is not None:
            object.__setattr__(self, "pad_to", _whole(self.pad_to, "pad_to"))
            if self.pad_to < 1:
                raise InputError(f"pruning: pad_to {self.pad_to}: a multiple from 1 is expected")
        blocks, mha, ffn = (set(_indices(getattr(self, name), name)) for name in ("blocks", "mha", "ffn"))
        blocks |= mha & ffn
        mha -= blocks
        ffn -= blocks
        kv_groups = _layers(self.kv_groups, "kv_groups", without=blocks | mha)
        neurons = _layers(self.neurons, "neurons", without=blocks | ffn)
        heads = _layers(self.heads, "heads", without=blocks | mha)
        added = Compensation.of(self.compensation).without(blocks | mha, blocks | ffn)
        normal = {"blocks": blocks, "mha": mha, "ffn": ffn}
        for name, indices in normal.items():
            object.__setattr__(self, name, tuple(sorted(indices)))
        object.__setattr__(self, "kv_groups", kv_groups)
        object.__setattr__(self, "neurons", neurons)
        object.__setattr__(self, "heads", heads)
        object.__setattr__(self, "compensation", added)

    def __bool__(self) -> bool:
        """Whether anything is removed, padded or added."""
        removed = self.blocks or self.mha or self.ffn or self.kv_groups or self.heads or self.neurons
        return bool(removed or self.pad_to or self.compensation)

    def __or__(self, other: Pruning) -> Pruning:
        """Both prunings: all that either removes or adds. InputError when they name two models or two paddings.

        What each adds to a bias stands for what it removes, so two that compensate should not remove the same: make the
        second on the model that the first one made.
        """
        if not isinstance(other, Pruning):
            return NotImplemented
        for name in ("model", "pad_to"):
            first, second = getattr(self, name), getattr(other, name)
            if first and second and first != second:
                raise InputError(f"pruning: {name} {first!r} and {second!r} cannot be composed; one {name} is expected")
        makers = {maker for made_by in (self.made_by, other.made_by) for maker in made_by.split(_JOINT) if maker}
        return Pruning(
            model=self.model or other.model,
            blocks=_united(self.blocks, other.blocks),
            mha=_united(self.mha, other.mha),
            ffn=_united(self.ffn, other.ffn),
            kv_groups=_united_layers(self.kv_groups, other.kv_groups),
            neurons=_united_layers(self.neurons, other.neurons),
            pad_to=self.pad_to or other.pad_to,
            made_by=_JOINT.join(sorted(makers)),
            heads=_united_layers(self.heads, other.heads),
            compensation=self.compensation | other.compensation,
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: lists, and strings for the block indices that are keys.

        `heads` and `compensation` (the digests; the values are a file of their own) stand there only when not empty.
        """
        data: dict[str, Any] = {
            "model": self.model,
            "blocks": list(self.blocks),
            "mha": list(self.mha),
            "ffn": list(self.ffn),
            "kv_groups": {str(layer): list(gone) for layer, gone in self.kv_groups.items()},
            "neurons": {str(layer): list(gone) for layer, gone in self.neurons.items()},
            "pad_to": self.pad_to,
            "made_by": self.made_by,
        }
        if self.heads:
            data["heads"] = {str(layer): list(gone) for layer, gone in self.heads.items()}
        if self.compensation:
            data["compensation"] = self.compensation.digests()
        return data

    @classmethod
    def from_dict(cls, data: object) -> Pruning:
        """Read the JSON form; absent keys mean nothing removed. InputError for another format (records and older files
        name none), unknown keys and bad values.

        Of compensation only the digests are known then: enough for a record, not to apply it to the original.
        """
        if not isinstance(data, Mapping):
            raise InputError(f"pruning: a JSON object is expected, not {type(data).__name__}")
        values = dict(data)
        if values.pop("format", FORMAT) != FORMAT:
            raise InputError(f"pruning: format {data['format']!r}: {FORMAT} is expected")
        _only_keys(values, [f.name for f in fields(cls)])
        for name in ("kv_groups", "heads", "neurons"):
            if name in values:
                values[name] = _read_layer_keys(values[name], name)
        if "compensation" in values:
            values["compensation"] = Compensation.known_as(values["compensation"])
        return cls(**values)

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write the pruning as JSON, and what it adds to biases as `compensation.safetensors` beside it; both whole or
        not at all.

        InputError when that file is there already and belongs to another pruning, or when values are not known.
        """
        beside = Path(path).absolute().parent / FILE
        with contextlib.ExitStack() as files:
            text = files.enter_context(whole_file(path))
            if self.compensation:
                from safetensors.torch import save

                values = save(self.compensation.tensors())
                if beside.exists() and beside.read_bytes() != values and not _owns(path, beside):
                    raise InputError(f"{beside}: belongs to another pruning; a folder of its own is expected")
                files.enter_context(whole_file(beside)).write_bytes(values)
            text.write_text(json_text({"format": FORMAT, **self.to_dict()}), encoding="utf-8")

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Pruning:
        """Read a pruning from a JSON file, and what it adds to biases from `compensation.safetensors` beside it.

        InputError naming the file when it holds none. Where that second file is missing (a saved checkpoint has the
        values in its biases), the pruning is a record: it cannot be applied to the original.
        """
        pruning = read_json_as(path, cls.from_dict)
        return replace(pruning, compensation=pruning.compensation.read_values(Path(path).parent / FILE))

    @classmethod
    def from_skip(cls, skip: object) -> Pruning:
        """The pruning that a `skip` argument means.

        `skip`: None, a Pruning, an iterable of block indices, or a mapping with any of "blocks", "mha", "ffn".
        InputError for anything else.
        """
        if skip is None:
            return cls()
        if isinstance(skip, Pruning):
            return skip
        if isinstance(skip, Mapping):
            _only_keys(skip, ["blocks", "mha", "ffn"])
            return cls(**skip)
        return cls(blocks=skip)  # type: ignore[arg-type]  # validated and normalised above

    def skip_sets(self) -> tuple[frozenset[int], frozenset[int], frozenset[int]]:
        """`(blocks, mha, ffn)` to pass over at run time. InputError when it narrows a block too: that takes `apply`."""
        narrowed = {name: sorted(getattr(self, name)) for name in ("kv_groups", "heads", "neurons")}
        for name, layers in {**narrowed, "compensation": self.compensation.blocks()}.items():
            if layers:
                raise InputError(
                    f"pruning: {name} of blocks {layers} cannot be skipped at run time;"
                    " blocks, mha and ffn are expected, the rest is made permanent by apply"
                )
        return frozenset(self.blocks), frozenset(self.mha), frozenset(self.ffn)

    def check_indices(self, sizes: OriginalSizes, model: str) -> None:
        """Raise InputError, naming `model`, for an index beyond the original model's sizes."""
        named = {name: getattr(self, name) for name in ("blocks", "mha", "ffn", "kv_groups", "heads", "neurons")}
        for name, indices in {**named, "compensation": self.compensation.blocks()}.items():
            for index in indices:
                if index >= sizes.blocks:
                    raise InputError(
                        f"pruning: {name} names block {index}; 0 to {sizes.blocks - 1} of {model} are accepted"
                    )
        for name, limit in (("kv_groups", sizes.kv_groups), ("heads", sizes.heads), ("neurons", sizes.width)):
            for layer, gone in getattr(self, name).items():
                if gone[-1] >= limit:
                    raise InputError(
                        f"pruning: {name} of block {layer} names {gone[-1]}; 0 to {limit - 1} of {model} are accepted"
                    )

    def check(self, decoder: Prunable) -> None:
        """Raise InputError when this cannot be removed from `decoder`: an index beyond the original model, or nothing
        left of the model or of a sublayer. What is already gone counts as removed, and is no error.

        Names are not compared (a checkpoint may be copied): sizes decide whether a pruning fits.
        """
        sizes = OriginalSizes.of(decoder)
        self.check_indices(sizes, decoder.name)
        total = recorded(decoder).joined(self)
        if len(total.blocks) >= sizes.blocks:
            raise InputError(f"pruning: all {sizes.blocks} blocks are removed; at least one must stay")
        for name, limit, sublayer in (("kv_groups", sizes.kv_groups, "mha"), ("neurons", sizes.width, "ffn")):
            for layer, gone in getattr(total, name).items():
                if len(gone) >= limit:
                    raise InputError(
                        f"pruning: all {limit} {name} of block {layer} are removed; at least one must stay"
                        f" (put {layer} in {sublayer!r} to remove the sublayer)"
                    )
        for layer in total.heads:
            total.heads_by_group(layer, sizes)
        for name in self.compensation.beyond(recorded(decoder).compensation):
            if len(self.compensation[name]) != decoder.hidden_size:
                raise InputError(
                    f"pruning: {len(self.compensation[name])} values are added to {name};"
                    f" {decoder.hidden_size} of {decoder.name} are accepted"
                )

    def heads_by_group(self, layer: int, sizes: OriginalSizes) -> dict[int, list[int]]:
        """KV group that stays in a block -> query heads of it that stay, original indices.

        InputError when the groups would not be equal in size, or empty: one KV head serves as many query heads as the
        next in every attention kernel (`MHA.group`).
        """
        gone, removed = set(self.heads.get(layer, ())), set(self.kv_groups.get(layer, ()))
        stay = {
            group: [head for head in range(group * sizes.group, (group + 1) * sizes.group) if head not in gone]
            for group in range(sizes.kv_groups)
            if group not in removed
        }
        counts = {group: len(heads) for group, heads in stay.items()}
        if len(set(counts.values())) > 1 or 0 in counts.values():
            raise InputError(
                f"pruning: heads of block {layer} leave {', '.join(map(str, counts.values()))} query heads in its KV"
                f" groups {', '.join(map(str, counts))}; as many in each, and at least one, are accepted (a whole group"
                " goes by kv_groups)"
            )
        return stay

    def joined(self, later: Pruning) -> Pruning:
        """Both prunings, where `later` acts on a model this one already made: names need not agree, and a padding it
        asks for replaces the old one."""
        return replace(self, pad_to=None) | replace(
            later, model=self.model or later.model, pad_to=later.pad_to or self.pad_to
        )


class Prunable(Configured, Protocol):
    """What a pruning asks of a model: a `Decoder`."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def pruning(self) -> Pruning | None: ...


def recorded(decoder: Prunable) -> Pruning:
    """What is already gone from a decoder, as its record says; an empty pruning of `decoder.name` where it has none."""
    return Pruning(model=decoder.name) if decoder.pruning is None else decoder.pruning


def original_name(decoder: Prunable) -> str:
    """The name of the unpruned model: the recorded one, since a pruned checkpoint is loaded under its directory's name.

    Prunings and scores carry it, so that those of a model and of its pruned checkpoint compose.
    """
    return recorded(decoder).model or decoder.name


def _owns(path: str | os.PathLike[str], beside: Path) -> bool:
    """Whether the pruning that is at `path` now is the one that the file beside it belongs to."""
    try:
        present = Pruning.from_json(path).compensation if Path(path).exists() else Compensation()
    except InputError:
        return False
    return bool(present) and present.complete()


def _whole(value: Any, name: str) -> int:
    if not is_whole(value):
        raise InputError(f"pruning: {name} {value!r}: a whole number is expected")
    return operator.index(value)


def _indices(values: object, name: str) -> tuple[int, ...]:
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise InputError(f"pruning: {name} {values!r}: a list of indices is expected")
    indices = sorted(_whole(value, f"index in {name}") for value in values)
    if indices and indices[0] < 0:
        raise InputError(f"pruning: {name} names {indices[0]}; indices from 0 are expected")
    for index, next_index in itertools.pairwise(indices):
        if index == next_index:
            raise InputError(f"pruning: {name} names {index} twice; each index is expected once")
    return tuple(indices)


def _layers(layers: object, name: str, without: set[int]) -> dict[int, tuple[int, ...]]:
    if not isinstance(layers, Mapping):
        raise InputError(f"pruning: {name} {layers!r}: an object from block index to a list is expected")
    _indices(list(layers), name)
    gone = {_whole(layer, name): _indices(values, f"{name} of block {layer}") for layer, values in layers.items()}
    return {layer: gone[layer] for layer in sorted(gone) if gone[layer] and layer not in without}


def _read_layer_keys(layers: object, name: str) -> object:
    if not isinstance(layers, Mapping):
        return layers
    keys: dict[int, object] = {}
    for key, values in layers.items():
        if isinstance(key, str) and not (key.isascii() and key.isdigit() and len(key) < 10):
            raise InputError(f"pruning: {name} key {key!r}: a block index is expected")
        layer = int(key) if isinstance(key, str) else _whole(key, f"{name} key")
        if layer in keys:
            raise InputError(f"pruning: {name} names block {layer} twice; each block is expected once")
        keys[layer] = values
    return keys


def _only_keys(data: Mapping[Any, Any], known: list[str]) -> None:
    for key in data:
        if key not in known:
            raise InputError(f"pruning: unknown key {key!r}; {', '.join(known)} are accepted")


def _united(first: Iterable[int], second: Iterable[int]) -> tuple[int, ...]:
    return tuple({*first, *second})


def _united_layers(
    first: Mapping[int, tuple[int, ...]], second: Mapping[int, tuple[int, ...]]
) -> dict[int, tuple[int, ...]]:
    return {layer: _united(first.get(layer, ()), second.get(layer, ())) for layer in {*first, *second}}
