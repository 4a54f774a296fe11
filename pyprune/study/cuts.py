"""What a file or directory says was cut: a pruning, a pruned checkpoint, or the rows of a comparison."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyprune.errors import InputError
from pyprune.files import read_json, write_text
from pyprune.models.demo import DEMO_MODEL
from pyprune.models.load import load_sizes
from pyprune.models.original_sizes import OriginalSizes
from pyprune.models.pruning import Pruning
from pyprune.models.shapes import PREFIX
from pyprune.study.cut_diagram import Cut, cut_svg
from pyprune.study.destination import require_file
from pyprune.study.labels import ORIGINAL
from pyprune.study.table import FORMAT

RECORD, CONFIG = "pruning.json", "original_config.json"


def draw_cuts(sources: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], model: str | None = None) -> Path:
    """Draw what each of `sources` removes into one SVG file, side by side, and return its path.

    sources: a pruning's JSON file, a directory that `prune` wrote, or results.json of a comparison (each pruned row).
    model: as in `pyprune.load`, of which sizes alone are read; needed for a pruning that neither stands beside its
    original_config.json nor names a model on this machine.
    InputError for anything else, and when `out` is a directory.
    """
    target = require_file(out)
    cuts = [cut for source in sources for cut in cuts_of(source, model)]
    write_text(target, cut_svg(cuts))
    return target


def cuts_of(source: str | os.PathLike[str], model: str | None = None) -> list[Cut]:
    """The cuts of one file or directory; InputError, naming it, where it holds none."""
    path = Path(source)
    file = path / RECORD if path.is_dir() else path
    data = read_json(file)
    if isinstance(data, Mapping) and data.get("format") == FORMAT:
        if model is not None:
            raise InputError(f"--model {model}: belongs to a pruning; the comparison {source} names its own")
        return comparison_cuts(data, str(source))
    pruning = Pruning.from_json(file)
    sizes = OriginalSizes.of(load_sizes(model)) if model is not None else _sizes_beside(file, pruning)
    pruning.check_indices(sizes, str(file) if model is None else model)
    name = path.resolve().name if path.is_dir() else file.stem if file.name != RECORD else file.resolve().parent.name
    return [Cut(name, pruning, sizes)]


def comparison_cuts(results: Mapping[str, Any], where: str) -> list[Cut]:
    """A cut for each row of a comparison that lists what it removes; padded rows, which repeat another one, have none.

    InputError naming `where` when no row does, or the original's sizes are not in the results.
    """
    try:
        rows = results["rows"]
        original = next(row for row in rows if row["method"] == ORIGINAL)
        sizes = OriginalSizes(*(int(original[key]) for key in ("blocks", "kv_heads", "ffn_width", "heads")))
        records = {row["name"]: row["pruning"] for row in rows if row["pruning"] and "as" not in row["pruning"]}
    except (KeyError, TypeError, ValueError, StopIteration) as error:
        raise InputError(f"{where}: incomplete results of {FORMAT} ({type(error).__name__}: {error})") from None
    cuts = [Cut(name, Pruning.from_dict(record), sizes) for name, record in records.items()]
    if not cuts:
        raise InputError(f"{where}: no row of it says what was removed; a comparison with pruned rows is expected")
    for cut in cuts:
        cut.pruning.check_indices(sizes, f"{where}, {cut.name}")
    return cuts


def _sizes_beside(file: Path, pruning: Pruning) -> OriginalSizes:
    """The sizes of the unpruned model: by the configuration beside the pruning, else by the model that it names, where
    that needs no network."""
    config = file.parent / CONFIG
    if config.is_file():
        read = read_json(config)
        if not isinstance(read, dict):
            raise InputError(f"{config}: not a JSON object")
        return OriginalSizes.from_config(read, str(config))
    if pruning.model == DEMO_MODEL or pruning.model.startswith(PREFIX):
        return OriginalSizes.of(load_sizes(pruning.model))
    named = f"names the model {pruning.model!r}" if pruning.model else "names no model"
    raise InputError(f"{file}: {named}, whose sizes are not beside it in {CONFIG}; --model MODEL is expected")
