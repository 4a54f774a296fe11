"""An evaluator for long work: with a journal to resume from, and with other processes to share the work."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from pyprune.models.load_any import AnyDecoder
from pyprune.scoring.distributed import process_group
from pyprune.scoring.edits import Edits
from pyprune.scoring.evaluator import Evaluator, SumsJournal
from pyprune.scoring.journal import Journal, journal_subject, make_entry
from pyprune.scoring.layered_model import LayeredModel
from pyprune.scoring.measures import Measure
from pyprune.scoring.process_group import ProcessGroup, WorkerLost
from pyprune.scoring.replacements import Replacement


@contextmanager
def open_evaluator(
    model: AnyDecoder | LayeredModel,
    input_ids: Tensor,
    mask: Tensor | None,
    work: str,
    *,
    measures: Sequence[Measure] | None = None,
    replacements: Mapping[int, Replacement] | None = None,
    settings: Mapping[str, Any] | None = None,
    memory: int | None = None,
    resume: str | os.PathLike[str] | None = None,
    distributed: bool | None = None,
    search: bool = False,
) -> Iterator[Evaluator]:
    """The evaluator of checked samples, as long as the work lasts.

    work: what is done, and settings: what else its results depend on, for the journal. resume: the journal's file:
    finished parts are kept in it, and those that are in it already are not computed again. distributed: as in
    `process_group`. The others as in `Evaluator`.
    """
    group = process_group(model.device, distributed)
    try:
        subject: dict[str, Any] = {}  # it takes a streamed model to be read once, which only these two need
        if resume is not None or group.size > 1:
            subject = journal_subject(model, input_ids, mask, work, **(settings or {}))
            group.require_same_call(json.dumps([subject, resume is not None]))
        with _open_journal(resume, subject, group) as journal:
            yield Evaluator(
                model,
                input_ids,
                mask,
                measures=measures,
                replacements=replacements,
                memory=memory,
                journal=journal,
                group=group,
                search=search,
            )
    except WorkerLost:
        raise
    except BaseException as error:
        group.fail(str(error) or type(error).__name__)
        raise


class _RankZeroJournal:
    """The journal as another process than rank 0 has it: entries are sent to rank 0, which alone reads the file."""

    def __init__(self, group: ProcessGroup) -> None:
        self._group = group

    def fill(self, candidates: Sequence[Edits], sums: Tensor, pending: Tensor) -> None:
        """Nothing: rank 0 broadcasts what it has read."""

    def add(self, candidates: Sequence[Edits], first_sample: int, sums: Tensor) -> None:
        """Send the sums to rank 0."""
        self._group.send_to_rank_zero(make_entry(candidates, first_sample, sums))


@contextmanager
def _open_journal(
    path: str | os.PathLike[str] | None, subject: dict[str, Any], group: ProcessGroup
) -> Iterator[SumsJournal | None]:
    if path is None:
        yield None
    elif group.rank > 0:
        yield _RankZeroJournal(group)
    else:
        with Journal(Path(path), subject) as journal:
            group.on_entry(journal.add_entry)
            yield journal
