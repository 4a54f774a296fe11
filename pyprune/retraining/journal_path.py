"""Where interrupted work is kept."""

from __future__ import annotations

import os
from pathlib import Path

from pyprune.errors import InputError


def journal_path(work: str, out: str | os.PathLike[str] | None, resume: bool | str | os.PathLike[str]) -> Path | None:
    """The path that `resume` names, or one beside `out` where it is True; None where it is False.

    InputError where it is to stand beside `out`, and there is none. work: what is resumed, for the message.
    """
    if resume is False:
        return None
    if resume is not True:
        return Path(resume)
    if out is None:
        raise InputError(f"{work}: resume: needs out; the journal is kept beside it")
    path = Path(out).absolute()
    return path.with_name(f"{path.name}.journal")
