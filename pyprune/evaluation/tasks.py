"""Accuracy on tasks of lm-eval."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from pyprune.errors import InputError
from pyprune.models.decoder import Decoder
from pyprune.progress import Progress


def require_tasks(tasks: str | Sequence[str], *, data: str | os.PathLike[str] | None = None) -> None:
    """Raise InputError now, before a model is loaded, for tasks or data that cannot be had."""
    raise InputError(f"tasks {tasks}: not available in this version; a perplexity text is accepted")


def evaluate_tasks(
    model: Decoder,
    tokenizer: Any,
    tasks: str | Sequence[str],
    *,
    limit: int | None = None,
    data: str | os.PathLike[str] | None = None,
    log_samples: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> dict[str, dict[str, Any]]:
    """`{name: {"acc", "acc_stderr", "acc_norm", "acc_norm_stderr", "documents"}}` of each task.

    tasks: names, or "paper". limit: documents a task. data: a folder of local data. log_samples: a folder for every
    document's answers.
    """
    raise InputError(f"tasks {tasks}: not available in this version; a perplexity text is accepted")
