"""Finished parts of a repair, kept in a folder as they come, so that an interrupted one goes on.

A file a part (a fitted projection, a block), written whole: safetensors with its tensors, and what was measured in its
metadata. `subject.json` says what they belong to. The same bits come out as without the interruption: what is read back
is what went on, and all that is computed again is computed in the same way.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pyprune.errors import InputError
from pyprune.files import read_json, whole_file, write_json
from pyprune.models.decoder import Block
from pyprune.models.tensors import one_line
from pyprune.scoring.process_group import SINGLE_PROCESS, ProcessGroup

Entry = tuple[dict[str, Tensor], dict[str, Any]]


class RepairJournal:
    """The folder `path`, which belongs to `subject`. InputError when it is of another subject, or no such folder.

    Of several processes rank 0 alone reads and writes it.
    """

    def __init__(
        self, path: str | os.PathLike[str], subject: dict[str, Any], group: ProcessGroup = SINGLE_PROCESS
    ) -> None:
        self.path = Path(path).absolute()
        if group.rank != 0:
            return
        named = self.path / "subject.json"
        if named.is_file():
            if read_json(named) != json.loads(json.dumps(subject)):
                raise InputError(
                    f"{path}: belongs to a repair with other models, text or options; delete it to begin again"
                )
        else:
            require_journal(path)
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(named, subject)

    def get(self, name: str) -> Entry | None:
        """The tensors and the values of the part, None where it is not finished."""
        file = self._file(name)
        if not file.exists():
            return None
        try:
            with safe_open(file, "pt") as stored:
                tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118  # no mapping
                return tensors, json.loads(stored.metadata()["values"])
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{file}: damaged ({one_line(error)}); delete {self.path} to begin again") from None

    def put(self, name: str, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Keep a finished part; it is in the file on return."""
        stored = {key: _alone(tensor.detach().cpu().contiguous()) for key, tensor in tensors.items()}
        with whole_file(self._file(name)) as scratch:
            save_file(stored, scratch, {"values": json.dumps(dict(values))})
            with open(scratch, "rb") as written:
                os.fsync(written.fileno())

    def drop(self, name: str) -> None:
        """Forget a part."""
        self._file(name).unlink(missing_ok=True)

    def delete(self) -> None:
        """Remove the folder, now that the result is written."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.safetensors"


def require_journal(path: str | os.PathLike[str]) -> None:
    """Raise InputError where something else than a journal of a repair stands at `path`."""
    folder = Path(path).absolute()
    is_begun = folder.is_dir() and all(entry.suffix == ".part" for entry in folder.iterdir())  # interrupted at once
    if folder.exists() and not is_begun and not (folder / "subject.json").is_file():
        raise InputError(f"{path}: not a journal of a repair; another name is expected")


def _alone(tensor: Tensor) -> Tensor:
    """The tensor, copied where it shares its memory with others: safetensors refuses those."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def block_tensors(blocks: Sequence[Block]) -> dict[str, Tensor]:
    """The tensors of blocks by name, for a journal."""
    return {f"{block.index}.{name}": tensor for block in blocks for name, tensor in block.tensors()}


def with_tensors(blocks: Sequence[Block], tensors: Mapping[str, Tensor]) -> list[Block]:
    """The blocks with a journal's tensors in the place of theirs."""
    names = {id(tensor): name for name, tensor in block_tensors(blocks).items()}
    return [block.map(lambda tensor: tensors[names[id(tensor)]].to(tensor.device)) for block in blocks]
