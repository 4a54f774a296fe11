"""Depth pruning: drop the most removable units (Shortened LLaMA, section 3.2: one shot, no iteration)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from pyprune.errors import InputError
from pyprune.models.load_any import AnyDecoder
from pyprune.models.pruning import Pruning, original_name
from pyprune.pruning.amount import check_count
from pyprune.pruning.budget import count_for_ratio, unit_parameters


class Ranking(Protocol):
    """What depth reads of `pyprune.scoring.scores.Scores`, in a package above this one."""

    @property
    def model(self) -> str: ...
    @property
    def criterion(self) -> str: ...
    @property
    def unit(self) -> str: ...
    @property
    def units(self) -> list[tuple[str, int]]: ...
    @property
    def parameters(self) -> int | None: ...
    @property
    def unit_parameters(self) -> list[int] | None: ...
    @property
    def protected(self) -> list[tuple[str, int]]: ...

    def order(self) -> list[tuple[str, int]]: ...


def depth(
    scores: Ranking,
    decoder: AnyDecoder | None = None,
    *,
    ratio: float | None = None,
    count: int | None = None,
    protect: Iterable[int] | str | None = None,
) -> Pruning:
    """The pruning that removes the most removable units of `scores`.

    Exactly one of `ratio` (share of all parameters, 0 < ratio < 1; the number of units that comes nearest) and `count`
    (units). `decoder`: the model whose scores these are; the pruning then names its original. `protect`: block indices
    that stay, or a string such as "first=4,last=2" or "0,1,31", counted over the blocks of `decoder`, or of the scores
    without one; units that the scores hold as protected stay too.
    InputError when a ratio is asked for and neither `decoder` nor the scores tell sizes, when the scores are of units
    or sizes that `decoder` does not have, when nothing removable is left, or when no block would stay.
    """
    if (ratio is None) == (count is None):
        raise InputError(f"depth: ratio {ratio!r} and count {count!r}: exactly one of them is expected")
    kinds = {kind for kind, _ in scores.units}
    if not kinds <= {"block", "mha", "ffn"}:
        raise InputError("depth: scores of candidates; scores of blocks or sublayers are expected")
    if "block" in kinds and len(kinds) > 1:
        raise InputError(
            f"depth: scores of {', '.join(sorted(kinds))}: blocks and their sublayers cannot be ranked together"
        )
    parameters, sizes = _sizes(scores, decoder) if decoder is not None or ratio is not None else (0, {})
    blocks = [index for _, index in scores.units] if decoder is None else [block.index for block in decoder.blocks]
    protected = protected_blocks(protect, blocks)
    candidates = [unit for unit in scores.order() if unit[1] not in protected and unit not in scores.protected]
    if not candidates:
        raise InputError(f"depth: protect {protect!r} leaves nothing to remove of {len(scores.units)} units")
    if ratio is not None:
        count = count_for_ratio(ratio, parameters, [sizes[unit] for unit in candidates])
    elif check_count(count) > len(candidates):
        raise InputError(f"depth: count {count}: 1 to {len(candidates)} units can be removed")
    chosen = candidates[:count]
    if kinds == {"block"} and len(chosen) >= len(set(blocks)):
        raise InputError(f"depth: all {len(chosen)} blocks would be removed; at least one must stay")
    model = scores.model if decoder is None else original_name(decoder)
    return removal(model, chosen, f"depth {scores.criterion} {scores.unit}")


def removal(model: str, units: Iterable[tuple[str, int]], made_by: str) -> Pruning:
    """The pruning that removes these units: pairs of a kind, "block", "mha" or "ffn", and an original index."""
    removed: dict[str, list[int]] = {"block": [], "mha": [], "ffn": []}
    for kind, index in units:
        removed[kind].append(index)
    return Pruning(
        model=model,
        blocks=tuple(removed["block"]),
        mha=tuple(removed["mha"]),
        ffn=tuple(removed["ffn"]),
        made_by=made_by,
    )


def protected_blocks(protect: Iterable[int] | str | None, blocks: Sequence[int]) -> frozenset[int]:
    """The block indices that `protect` names among `blocks`.

    A string is a list of indices, "first=N" and "last=N", separated by commas. InputError for anything else and for a
    block that is not there.
    """
    present = sorted(set(blocks))
    if protect is None:
        return frozenset()
    if not isinstance(protect, str):
        return _check_present(Pruning(blocks=protect).blocks, present)  # type: ignore[arg-type]  # Pruning validates and sorts
    chosen: set[int] = set()
    for part in filter(None, (part.strip() for part in protect.split(","))):
        end, equals, number = part.rpartition("=")
        if end not in (("first", "last") if equals else ("",)) or not (number.isascii() and number.isdigit()):
            raise InputError(f"protect {part!r}: first=N, last=N or block indices are expected")
        if end:
            size = int(number)
            chosen.update(present[:size] if end == "first" else present[max(0, len(present) - size) :])
        else:
            chosen |= _check_present([int(number)], present)
    return frozenset(chosen)


def _check_present(indices: Iterable[int], present: Sequence[int]) -> frozenset[int]:
    for index in indices:
        if index not in present:
            raise InputError(
                f"protect {index}: a block from {present[0]} to {present[-1]} that the model has is expected"
            )
    return frozenset(indices)


def _sizes(scores: Ranking, decoder: AnyDecoder | None) -> tuple[int, dict[tuple[str, int], int]]:
    """Parameters of the model, and of each scored unit."""
    if decoder is None:
        if scores.parameters is None or scores.unit_parameters is None:
            raise InputError("depth: these scores hold no parameter counts; a ratio needs the decoder, or give a count")
        return scores.parameters, dict(zip(scores.units, scores.unit_parameters, strict=True))
    sizes = {(kind, i): n for kind in {k for k, _ in scores.units} for i, n in unit_parameters(decoder, kind).items()}
    for kind, index in scores.units:
        if (kind, index) not in sizes:
            raise InputError(f"depth: the scores name {kind} {index}, which {decoder.name} does not have")
    parameters = decoder.parameters()
    if scores.parameters not in (None, parameters):
        raise _other_model("the model", scores.parameters, decoder, parameters)
    for (kind, index), scored in zip(scores.units, scores.unit_parameters or (), strict=False):
        if scored != sizes[kind, index]:
            raise _other_model(f"{kind} {index}", scored, decoder, sizes[kind, index])
    return parameters, sizes


def _other_model(what: str, scored: int | None, decoder: AnyDecoder, present: int) -> InputError:
    return InputError(
        f"depth: {what} had {scored} parameters when scored and has {present} in {decoder.name}; scores of this model"
        " are expected"
    )
