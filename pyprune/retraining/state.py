"""What a training needs to go on after kill -9: one safetensors file, written whole or not at all.

What is trained, AdamW's two moments of it, and as JSON in the metadata the step, the curve, and the subject: what the
training is of. Nothing else is kept: the learning rate, the order of samples and the dropout follow from seed and step.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pyprune.errors import InputError
from pyprune.files import remove_parts, require_free_file, whole_file
from pyprune.retraining.curve import Point

FORMAT = "pyprune-training-state/2"  # states of format 1 go on with other dropout masks
_MOMENTS = ("exp_avg", "exp_avg_sq")


class StateFile:
    """The file at `path`, which belongs to `subject`. InputError when it is of another subject, or no such file."""

    def __init__(self, path: str | os.PathLike[str], subject: dict[str, Any]) -> None:
        self.path = require_free_file(path)
        remove_parts(self.path)
        self.subject = json.loads(json.dumps(subject))

    def save(
        self, step: int, curve: Sequence[Point], trained: Mapping[str, Tensor], optimizer: torch.optim.AdamW
    ) -> None:
        """Keep the state after `step` steps; it is in the file on return."""
        tensors = {}
        for name, parameter in trained.items():
            tensors[f"parameter.{name}"] = parameter.detach()
            for moment in _MOMENTS if parameter in optimizer.state else ():  # none where it got no gradient
                tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment]
        metadata = {
            "format": FORMAT,
            "subject": json.dumps(self.subject),
            "step": json.dumps(step),
            "curve": json.dumps([point.to_dict() for point in curve]),
        }
        with whole_file(self.path) as scratch:
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, scratch, metadata)

    def load(self, trained: Mapping[str, Tensor], optimizer: torch.optim.AdamW) -> tuple[int, list[Point]]:
        """Put what was kept into the parameters and the optimizer: the steps done, and their curve; 0 and none where
        there is no file. InputError for a file of something else."""
        if not self.path.exists():
            return 0, []
        try:
            with safe_open(self.path, "pt") as stored:
                metadata = stored.metadata() or {}
                self._check(metadata)
                step = int(json.loads(metadata["step"]))
                curve = [Point(**point) for point in json.loads(metadata["curve"])]
                self._restore(stored, step, trained, optimizer)
        except SafetensorError as error:
            raise InputError(f"{self.path}: not the state of a training ({error}); delete it to begin again") from None
        return step, curve

    def delete(self) -> None:
        """Remove the file, now that the result is written."""
        Path(self.path).unlink(missing_ok=True)

    def _check(self, metadata: dict[str, str]) -> None:
        if metadata.get("format") != FORMAT:
            raise InputError(f"{self.path}: holds no {FORMAT}; delete it to begin again, or name another file")
        subject = json.loads(metadata["subject"])
        for name, value in self.subject.items():
            if subject.get(name) != value:
                raise InputError(
                    f"{self.path}: holds a training with {name} {subject.get(name)}; now {name} is {value}; delete the"
                    " file to begin again"
                )

    def _restore(self, stored: Any, step: int, trained: Mapping[str, Tensor], optimizer: torch.optim.AdamW) -> None:
        names = set(stored.keys())
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(stored.get_tensor(f"parameter.{name}"))
                if f"{_MOMENTS[0]}.{name}" not in names:
                    continue
                optimizer.state[parameter] = {
                    "step": torch.tensor(float(step), dtype=torch.float32),
                    **{moment: stored.get_tensor(f"{moment}.{name}").to(parameter.device) for moment in _MOMENTS},
                }
