"""An evaluator for long work: with a journal to resume from, and with other processes to share the work."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from pyprune.models.decoder import Decoder
from pyprune.scoring.distributed import process_group
from pyprune.scoring.evaluator import Evaluator, LossJournal
from pyprune.scoring.journal import Journal, journal_subject, make_entry
from pyprune.scoring.process_group import ProcessGroup, WorkerLost
from pyprune.scoring.removals import Removal


@contextmanager
def open_evaluator(
    decoder: Decoder,
    input_ids: Tensor,
    mask: Tensor | None,
    work: str,
    *,
    targets: Tensor | None = None,
    memory: int | None = None,
    resume: str | os.PathLike[str] | None = None,
    distributed: bool | None = None,
    search: bool = False,
) -> Iterator[Evaluator]:
    """The evaluator of checked samples, as long as the work lasts.

    work: what is done, for the journal. resume: the journal's file: finished parts are kept in it, and those that are
    in it already are not computed again. distributed: as in `process_group`. targets, memory, search: as in
    `Evaluator`.
    """
    group = process_group(decoder.device, distributed)
    try:
        subject = journal_subject(decoder, input_ids, mask, work, targets)
        group.require_same_call(json.dumps([subject, resume is not None]))
        with _open_journal(resume, subject, group) as journal:
            yield Evaluator(
                decoder,
                input_ids,
                mask,
                targets=targets,
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

    def fill(self, removals: Sequence[Removal], losses: Tensor, pending: Tensor) -> None:
        """Nothing: rank 0 broadcasts what it has read."""

    def add(self, removals: Sequence[Removal], first_sample: int, losses: Tensor) -> None:
        """Send the losses to rank 0."""
        self._group.send_to_rank_zero(make_entry(removals, first_sample, losses))


@contextmanager
def _open_journal(
    path: str | os.PathLike[str] | None, subject: dict[str, Any], group: ProcessGroup
) -> Iterator[LossJournal | None]:
    if path is None:
        yield None
    elif group.rank > 0:
        yield _RankZeroJournal(group)
    else:
        with Journal(Path(path), subject) as journal:
            group.on_entry(journal.add_entry)
            yield journal
