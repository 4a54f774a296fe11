"""What a pruning adds to biases, to stand for what it took away (FLAP's baseline bias compensation)."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyprune.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

FILE = "compensation.safetensors"
_NAME = re.compile(r"blocks\.(0|[1-9][0-9]{0,8})\.(o|down)\.bias")
_EXPECTED = "blocks.N.o.bias or blocks.N.down.bias, N the block's original index,"


class Compensation(Mapping[str, "Tensor"]):
    """Bias name ("blocks.3.o.bias", "blocks.3.down.bias", original indices) -> what is added to it, float32 `[hidden]`.

    Each addition is known by the digest of its values, so that two prunings compose as sets: what both add is added
    once, what they add apart is summed, in whatever order. An addition of which only the digest is known (it is read
    from a record, and the tensors lie in the model's biases) counts as there, but cannot be added to another model.
    """

    def __init__(self, parts: Mapping[str, Mapping[str, Tensor | None]] | None = None) -> None:
        self._parts = {
            name: dict(sorted(part.items())) for name, part in sorted((parts or {}).items(), key=_place) if part
        }

    @classmethod
    def of(cls, value: object) -> Compensation:
        """From `{name: bias [hidden]}`, or from itself; zeros add nothing. InputError for other names and values."""
        if isinstance(value, Compensation):
            return value
        if not isinstance(value, Mapping):
            raise InputError(
                f"pruning: compensation {type(value).__name__}: a mapping from a bias to its values is expected"
            )
        return cls({name: _part(name, tensor) for name, tensor in value.items()})

    @classmethod
    def known_as(cls, digests: object) -> Compensation:
        """The JSON form, `{name: [digests]}`: what is known without the tensors."""
        if not isinstance(digests, Mapping):
            raise InputError(f"pruning: compensation {digests!r}: an object from a bias to digests is expected")
        parts: dict[str, dict[str, Tensor | None]] = {}
        for name, listed in digests.items():
            _check_name(name)
            if not isinstance(listed, list) or not all(
                isinstance(digest, str) and len(digest) == 64 for digest in listed
            ):
                raise InputError(f"pruning: compensation of {name} {listed!r}: a list of SHA-256 digests is expected")
            parts[name] = dict.fromkeys(listed)
        return cls(parts)

    def digests(self) -> dict[str, list[str]]:
        """The JSON form: names, and the digest of each addition."""
        return {name: list(part) for name, part in self._parts.items()}

    def __getitem__(self, name: str) -> Tensor:
        """The sum of all that is added to one bias. InputError where only digests are known."""
        import torch

        tensors = []
        for digest, tensor in self._parts[name].items():
            if tensor is None:
                raise _unknown(name, digest)
            tensors.append(tensor)
        return torch.stack(tensors).sum(0) if len(tensors) > 1 else tensors[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Compensation) and self.digests() == other.digests()

    def __hash__(self) -> int:
        return hash(tuple((name, *part) for name, part in self._parts.items()))

    def __repr__(self) -> str:
        return f"Compensation({', '.join(self._parts)})"

    def __or__(self, other: Compensation) -> Compensation:
        """All that either adds; a tensor known on one side is known."""
        names = [*self._parts, *other._parts]
        return Compensation({name: _either(self._parts.get(name, {}), other._parts.get(name, {})) for name in names})

    def beyond(self, before: Compensation) -> Compensation:
        """What this adds that `before` has not added."""
        return Compensation(
            {
                name: {digest: tensor for digest, tensor in part.items() if digest not in before._parts.get(name, {})}
                for name, part in self._parts.items()
            }
        )

    def without(self, o: Iterable[int], down: Iterable[int]) -> Compensation:
        """What is left when the o of some blocks and the down of others are gone."""
        gone = {f"blocks.{index}.o.bias" for index in o} | {f"blocks.{index}.down.bias" for index in down}
        return Compensation({name: part for name, part in self._parts.items() if name not in gone})

    def blocks(self) -> list[int]:
        """Original indices of the blocks that it touches."""
        return sorted({block_of(name) for name in self._parts})

    def complete(self) -> bool:
        """Whether every addition's values are known."""
        return all(tensor is not None for part in self._parts.values() for tensor in part.values())

    def tensors(self) -> dict[str, Tensor]:
        """The safetensors form: an addition under its bias's name, further ones with ".1", ".2" behind it.

        InputError where values are not known.
        """
        tensors = {}
        for name, part in self._parts.items():
            for place, (digest, tensor) in enumerate(part.items()):
                if tensor is None:
                    raise _unknown(name, digest)
                tensors[f"{name}.{place}" if place else name] = tensor
        return tensors

    def with_values(self, tensors: Mapping[str, Tensor]) -> Compensation:
        """The same, with the values that are among these (`tensors()` of the same additions)."""
        by_digest = {digest: values for values in tensors.values() for digest, values in _digested(values).items()}
        return Compensation(
            {
                name: {d: by_digest.get(d) if t is None else t for d, t in part.items()}
                for name, part in self._parts.items()
            }
        )

    def read_values(self, path: str | os.PathLike[str]) -> Compensation:
        """The same, with the values that the file holds; without a file, as it is.

        InputError for a file that cannot be read or lacks an addition.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if self.complete() or not Path(path).exists():
            return self
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: {' '.join(str(error).split())}; a safetensors file is expected") from None
        completed = self.with_values(tensors)
        if not completed.complete():
            lacking = next(name for name, part in completed._parts.items() if None in part.values())
            raise InputError(f"{path}: belongs to another pruning: it lacks what is added to {lacking}")
        return completed


def block_of(name: str) -> int:
    """The block of a bias's name."""
    return int(name.split(".")[1])


def _place(entry: tuple[str, Any]) -> tuple[int, str]:
    return block_of(entry[0]), entry[0]


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(f"pruning: compensation of {name!r}: {_EXPECTED} is expected")


def _part(name: object, value: object) -> dict[str, Tensor | None]:
    import torch

    _check_name(name)
    if not isinstance(value, torch.Tensor) or value.dim() != 1 or not value.is_floating_point():
        shown = f"{value.dtype} {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise InputError(f"pruning: compensation of {name}: {shown} given; a vector of floats is expected")
    if not bool(value.isfinite().all()):
        raise InputError(f"pruning: compensation of {name}: infinite or NaN; finite values are expected")
    if not bool(value.any()):
        return {}
    return dict(_digested(value))


def _digested(values: Tensor) -> dict[str, Tensor]:
    import torch

    tensor = values.detach().to("cpu", torch.float32, copy=True).contiguous()
    return {hashlib.sha256(tensor.numpy().tobytes()).hexdigest(): tensor}


def _unknown(name: str, digest: str) -> InputError:
    return InputError(
        f"pruning: the values added to {name} (SHA-256 {digest[:12]}...) are not known, only that they were added;"
        f" a {FILE} beside the pruning's JSON is expected"
    )


def _either(one: Mapping[str, Tensor | None], other: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
    return {
        digest: one.get(digest) if one.get(digest) is not None else other.get(digest) for digest in {**one, **other}
    }
