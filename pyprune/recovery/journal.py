"""Finished blocks of a repair, kept in a folder as they come, so that an interrupted one goes on.

A file a block, written whole: safetensors with the block's weights, and the errors in its metadata. `subject.json` says
what they belong to.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save

from pyprune.errors import InputError
from pyprune.files import read_json, write_bytes, write_json
from pyprune.models.decoder import Block


class BlockJournal:
    """The folder `path`, which belongs to `subject`. InputError when it is of another subject, or no such folder."""

    def __init__(self, path: str | os.PathLike[str], subject: dict[str, Any]) -> None:
        self.path = Path(path).absolute()
        named = self.path / "subject.json"
        if self.path.exists():
            if not named.is_file():
                raise InputError(f"{path}: not a journal of a repair; another name is expected")
            present = read_json(named)
            if present != json.loads(json.dumps(subject)):
                raise InputError(
                    f"{path}: belongs to a repair with other models, text or options; delete it to begin again"
                )
        else:
            self.path.mkdir(parents=True)
            write_json(named, subject)

    def get(self, block: Block) -> Block | None:
        """The finished block in the place of `block`, None where there is none."""
        file = self._file(block)
        if not file.exists():
            return None
        with safe_open(file, "pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  # no mapping
        names = {id(tensor): name for name, tensor in block.tensors()}  # `map` has an order of its own
        return block.map(lambda tensor: tensors[names[id(tensor)]].to(tensor.device))

    def errors(self, block: Block) -> dict[str, float]:
        """The errors that were kept with it."""
        with safe_open(self._file(block), "pt") as stored:
            return json.loads(stored.metadata()["errors"])

    def put(self, block: Block, errors: dict[str, float]) -> None:
        """Keep a finished block; it is in the file on return."""
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in block.tensors()}
        write_bytes(self._file(block), save(tensors, {"errors": json.dumps(errors)}))

    def delete(self) -> None:
        """Remove the folder, now that the result is written."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _file(self, block: Block) -> Path:
        return self.path / f"block-{block.index}.safetensors"
