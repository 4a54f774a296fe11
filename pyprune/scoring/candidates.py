"""Candidates: changes of a model, each scored as if it were the model.

A candidate is a `Pruning`, or a mapping from places to what stands there: `(block, "mha" | "ffn" | "block")`, the block
by its original index, to None (nothing runs there) or a replacement (`pyprune.scoring.replacements`,
`pyprune.scoring.narrowed`). A replaced block is one function of its input: x + f(x) is the state behind it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pyprune.checks import is_whole
from pyprune.errors import InputError
from pyprune.models.blocks import FFN, MHA, Block, Linear
from pyprune.models.pruning import Pruning
from pyprune.scoring.edits import Edits, edit_of
from pyprune.scoring.layered_decoder import LayeredDecoder
from pyprune.scoring.layered_model import LayeredModel
from pyprune.scoring.narrowed import check_sublayer, pruned_sublayers
from pyprune.scoring.replacements import Replacement, WithResidual, generic_replacement

Candidate = Pruning | Mapping[tuple[int, str], Any]

PLACES = ("mha", "ffn", "block")


@dataclass(frozen=True)
class CandidateSet:
    """Candidates as edits, what stands in sublayers' places by the edit, and each candidate's name and description (its
    JSON form)."""

    edits: list[Edits]
    replacements: dict[int, Replacement]
    described: list[dict[str, Any]]

    def digests(self) -> list[str | None]:
        """What identifies the replacements, in their order."""
        return [replacement.digest() for replacement in self.replacements.values()]


def candidate_set(model: LayeredModel, candidates: object) -> CandidateSet:
    """Read candidates: a list of them, or a mapping from names to them.

    InputError, naming the candidate, for one that changes nothing, a block that the model has not, a place that is
    named twice, or a replacement that does not fit.
    """
    if isinstance(candidates, Mapping) and all(isinstance(name, str) for name in candidates):
        named = list(candidates.items())
    elif isinstance(candidates, Sequence) and not isinstance(candidates, (str, bytes)):
        named = [(str(number), candidate) for number, candidate in enumerate(candidates)]
    else:
        raise InputError(
            f"candidates: {type(candidates).__name__} given; a list of prunings and of mappings from (block, 'mha' or"
            " 'ffn' or 'block') is expected, or a mapping from names to those"
        )
    if not named:
        raise InputError("candidates: none given; at least one is expected")
    reader = _Reader(model)
    return CandidateSet(
        [reader.read(name, candidate) for name, candidate in named],
        reader.replacements,
        [{"name": name, **_described(candidate)} for name, candidate in named],
    )


def read_prunings(directory: str | os.PathLike[str]) -> dict[str, Pruning]:
    """The prunings of a directory by name, in the order of their names: its .json files, and the `pruning.json` of its
    subdirectories, each with the `compensation.safetensors` beside it.

    InputError when there are none, or one cannot be read.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise InputError(f"{directory}: a directory of prunings is expected")
    files = {path.stem: path for path in folder.glob("*.json")}
    for path in folder.glob("*/pruning.json"):
        if path.parent.name in files:
            raise InputError(f"{directory}: {path.parent.name} and {path.parent.name}.json: one of a name is expected")
        files[path.parent.name] = path
    if not files:
        raise InputError(f"{directory}: no prunings; NAME.json files or NAME/pruning.json are expected")
    return {name: Pruning.from_json(files[name]) for name in sorted(files)}


@dataclass
class _Reader:
    """Reads candidates of one model. The same replacement at the same place gets the same number, by which states are
    shared: equal narrowings, and modules that are one object."""

    model: LayeredModel
    replacements: dict[int, Replacement] = field(default_factory=dict)
    _numbers: dict[tuple[int, object], int] = field(default_factory=dict)
    _kept: list[object] = field(default_factory=list)  # what is known by its id stays alive

    def read(self, name: str, candidate: object) -> Edits:
        label = f"candidate {name}"
        if isinstance(candidate, Pruning):
            edits = self._of_pruning(label, candidate)
        elif isinstance(candidate, Mapping):
            edits = self._of_mapping(label, candidate)
        else:
            raise InputError(
                f"{label}: {type(candidate).__name__} given; a Pruning, or a mapping from (block, 'mha' or 'ffn' or"
                " 'block') to a replacement, is expected"
            )
        if self.model.present <= edits:
            raise InputError(f"{label}: leaves nothing of {self.model.name}; at least one sublayer must run")
        return edits

    def _of_pruning(self, label: str, pruning: Pruning) -> Edits:
        if not pruning:
            raise InputError(f"{label}: an empty pruning; one that removes something is expected")
        if not isinstance(self.model, LayeredDecoder):
            return self._of_mapping(label, _removed_units(label, self.model, pruning))
        decoder, edits = self.model.decoder, set()
        try:
            pruning.check(decoder)
            pruning.compensation.tensors()
        except InputError as error:
            raise InputError(f"{label}: {error}") from None
        for index, kind, narrowed in pruned_sublayers(decoder, pruning):
            sublayer = 2 * self.model.block_indices.index(index) + PLACES.index(kind)
            edits.add(sublayer if narrowed is None else self._edit(sublayer, narrowed, narrowed.digest()))
        return frozenset(edits)

    def _of_mapping(self, label: str, changes: Mapping[Any, Any]) -> Edits:
        if not changes:
            raise InputError(f"{label}: an empty mapping; at least one (block, 'mha' or 'ffn' or 'block') is expected")
        edits: dict[int, int] = {}  # sublayer -> edit
        for place, value in changes.items():
            block, kind = self._place(label, place)
            for sublayer, edit in self._edits_at(f"{label}: {kind} {place[0]}", block, kind, value).items():
                if sublayer in edits:
                    raise InputError(f"{label}: {kind} {place[0]} is changed twice; once is expected")
                edits[sublayer] = edit
        return frozenset(edits.values())

    def _place(self, label: str, place: object) -> tuple[int, str]:
        """The position of a block, and which part of it is meant."""
        accepted = PLACES if self.model.sublayers_per_block == 2 else ("block",)
        if not isinstance(place, tuple) or len(place) != 2 or not is_whole(place[0]) or place[1] not in accepted:
            raise InputError(
                f"{label}: place {place!r}; a pair of a block and one of {', '.join(accepted)} is expected"
            )
        indices = list(self.model.block_indices)
        if place[0] not in indices:
            raise InputError(
                f"{label}: block {place[0]}, which {self.model.name} has not; of {indices[0]} to {indices[-1]} it has"
                f" {len(indices)}"
            )
        return indices.index(place[0]), place[1]

    def _edits_at(self, name: str, block: int, kind: str, value: object) -> dict[int, int]:
        """By sublayer the edits that put `value` at one place; two for a whole block of two sublayers."""
        first = 2 * block
        if kind != "block" or self.model.sublayers_per_block == 1:
            sublayer = first + (kind == "ffn")
            return {sublayer: self._put(sublayer, name, value)}
        if isinstance(value, Block):
            return {
                first + place: self._put(first + place, name, part) for place, part in enumerate((value.mha, value.ffn))
            }
        # What stands for the whole block runs at the first of its sublayers, and the second does not run.
        return {first: self._put(first, name, value), first + 1: first + 1}

    def _put(self, sublayer: int, name: str, value: object) -> int:
        if value is None:
            return sublayer
        key = (id(value.module), "residual") if isinstance(value, WithResidual) else id(value)
        if (sublayer, key) in self._numbers:
            return self._numbers[sublayer, key]
        replacement: Replacement | None
        if isinstance(value, (MHA, FFN)) and isinstance(self.model, LayeredDecoder):
            replacement = check_sublayer(value, self.model.decoder, name)
        else:
            replacement = generic_replacement(value, name, self.model)
        if replacement is None:
            raise InputError(
                f"{name}: {type(value).__name__} given; None, a module or function of hidden states, a vector [hidden]"
                " to add, a Linear, an MHA or an FFN is expected"
            )
        return self._edit(sublayer, replacement, key, value)

    def _edit(self, sublayer: int, replacement: Replacement, key: object, kept: object = None) -> int:
        """The number of the edit that puts a replacement, known by its key, in a sublayer's place."""
        if (sublayer, key) not in self._numbers:
            edit = edit_of(sublayer, len(self._numbers) + 1)
            self._numbers[sublayer, key] = edit
            self.replacements[edit] = replacement
            self._kept.append(kept)
        return self._numbers[sublayer, key]


def _removed_units(label: str, model: LayeredModel, pruning: Pruning) -> dict[tuple[int, str], None]:
    """What a pruning leaves out, of a model whose sublayers cannot be narrowed."""
    narrowed = [name for name in ("kv_groups", "heads", "neurons", "compensation") if getattr(pruning, name)]
    if narrowed:
        raise InputError(f"{label}: {', '.join(narrowed)} of {model.name} cannot be narrowed; blocks can be left out")
    units = {"block": pruning.blocks, "mha": pruning.mha, "ffn": pruning.ffn}
    return {(index, kind): None for kind, indices in units.items() for index in indices}


def _described(candidate: Candidate) -> dict[str, Any]:
    if isinstance(candidate, Pruning):
        return {"pruning": candidate.to_dict()}
    changes = [
        {"block": int(block), "place": place, "by": _value_name(value)} for (block, place), value in candidate.items()
    ]
    return {"changes": changes}


def _value_name(value: object) -> str | None:
    """A short name of a replacement; None where nothing stands there."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        return f"mean update {list(value.shape)}"
    if isinstance(value, FFN):
        return f"FFN of width {value.width}"
    if isinstance(value, MHA):
        return f"MHA of {value.heads} heads, {value.kv_heads} KV heads"
    if isinstance(value, Linear):
        return f"Linear {list(value.weight.shape)}"
    if isinstance(value, WithResidual):
        return f"{_value_name(value.module)}, residual included"
    if isinstance(value, nn.Module):
        return type(value).__name__
    return str(getattr(value, "__qualname__", type(value).__name__))
