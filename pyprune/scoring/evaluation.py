"""An evaluator with what long work is given: a journal that it can go on from, and other processes to share it with."""

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
from pyprune.scoring.evaluator import Evaluator
from pyprune.scoring.journal import Journal, entry_of, subject_of
from pyprune.scoring.process_group import ProcessGroup, WorkerLost
from pyprune.scoring.removals import Removal


@contextmanager
def evaluation(
    decoder: Decoder,
    input_ids: Tensor,
    mask: Tensor | None,
    work: str,
    *,
    memory: int | None = None,
    resume: str | os.PathLike[str] | None = None,
    distributed: bool | None = None,
    search: bool = False,
) -> Iterator[Evaluator]:
    """The evaluator of checked samples, as long as the work lasts.

    work: what is done, for the journal. resume: the journal's file: finished parts are kept in it, and those that are
    there already are not computed again. distributed: as in `process_group`. memory, search: as in `Evaluator`.
    """
    group = process_group(decoder.device, distributed)
    try:
        subject = subject_of(decoder, input_ids, mask, work)
        group.require_same_call(json.dumps([subject, resume is not None]))
        with _journal(resume, subject, group) as journal:
            yield Evaluator(decoder, input_ids, mask, memory=memory, journal=journal, group=group, search=search)
    except WorkerLost:
        raise
    except BaseException as error:
        group.fail(str(error) or type(error).__name__)
        raise


class _Told:
    """The journal as a process has it that is not the first: rank 0 keeps it, and knows what is in it."""

    def __init__(self, group: ProcessGroup) -> None:
        self._group = group

    def fill(self, removals: Sequence[Removal], losses: Tensor, todo: Tensor) -> None:
        pass

    def add(self, removals: Sequence[Removal], first: int, losses: Tensor) -> None:
        self._group.send_to_rank_zero(entry_of(removals, first, losses))


@contextmanager
def _journal(
    path: str | os.PathLike[str] | None, subject: dict[str, Any], group: ProcessGroup
) -> Iterator[Journal | _Told | None]:
    if path is None:
        yield None
    elif group.rank > 0:
        yield _Told(group)
    else:
        with Journal(Path(path), subject) as journal:
            group.listen(journal.add_entry)
            yield journal
