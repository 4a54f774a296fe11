"""Models, devices and calibration texts as the commands' options name them."""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path
from typing import Any

from pyprune.commands.criterion import REPAIR_SAMPLES, chosen_criterion
from pyprune.commands.output import Bar
from pyprune.errors import InputError
from pyprune.files import remove_directory


def require_scorable(options: argparse.Namespace, unit: str) -> None:
    """Raise InputError now for a criterion that cannot be had, and for texts that it needs and that are missing."""
    from pyprune.scoring.searches.search import check_search

    criterion, settings = chosen_criterion(options, unit)
    if (method := getattr(options, "search", None)) is not None and not options.repair_each:
        check_search(method, criterion.name, unit, settings)
    follows_on = getattr(options, "repair", None) is not None  # then the repair resumes, and the choice is made again
    if criterion.needs != "nothing":
        require_texts(options)
    elif not follows_on:
        for name in ("text", "field"):
            if getattr(options, name) is not None:
                raise InputError(f"--{name} {getattr(options, name)}: criterion {criterion.name} reads no text")
    if options.resume and "resume" not in criterion.options and not follows_on:
        raise InputError(f"--resume: criterion {criterion.name} keeps no journal; ppl and ppl-after-repair do")
    journal_beside(options)


def init_distributed(device: Any = "cpu") -> None:
    """Come together with the other processes that torchrun has started, if it has: before the slow part, so that what
    happens to one in it is known to all."""
    if "RANK" in os.environ:
        from pyprune.scoring.distributed import process_group

        group = process_group(torch_device(device))

        def terminated(*_: object) -> None:
            group.check()  # torchrun ends all processes when one has died: then that is what is told
            raise KeyboardInterrupt

        signal.signal(signal.SIGTERM, terminated)


def journal_beside(options: argparse.Namespace) -> Path | None:
    """The journal of --resume, None without; InputError where there is no --out that it could stand beside."""
    if not options.resume:
        return None
    if options.out is None:
        raise InputError("--resume: needs --out; the journal is written beside it")
    out = Path(options.out).absolute()
    return out.with_name(f"{out.name}.journal")


def repair_journal_beside(options: argparse.Namespace) -> Path | None:
    """The folder in which --resume keeps a repair that follows on a choice, None without."""
    journal = journal_beside(options)
    return None if journal is None else journal.with_name(f"{journal.name}.repair")


def remove_journal(options: argparse.Namespace) -> None:
    """Remove the journal of --resume, a file or a folder, now that the result is written."""
    journal = journal_beside(options)
    if journal is not None and journal.is_dir():
        remove_directory(journal)
    elif journal is not None:
        journal.unlink(missing_ok=True)
        journal.with_name(f"{journal.name}.scores").unlink(missing_ok=True)


def require_texts(options: argparse.Namespace) -> None:
    """Raise InputError now for texts that are missing, or windows that cannot be drawn."""
    from pyprune.scoring.calibration import check_window_options, require_text

    check_window_options(options.samples, options.seq_len, options.seed, options.packing, options.bos)
    options.source = None  # what was read to check it, for `calibration_windows`
    if options.text is not None or not options.model.startswith("shape:"):
        options.source = require_text(options.text, field=options.field)


def take_text(options: argparse.Namespace, name: str) -> None:
    """Take a demonstration text where --text names none; InputError where it is not installed."""
    from pyprune.scoring.calibration.demonstrations import require_demonstration

    if options.text is None and not options.model.startswith("shape:"):
        require_demonstration(name, "--text")
        options.text = name


def calibration_windows(options: argparse.Namespace, decoder: Any, more: int = 0) -> Any:
    """The calibration windows that the options of `add_text` name, and `more` of the same draw."""
    from pyprune.scoring.calibration import calibration

    sizes = (options.samples + more, options.seq_len, options.seed)
    text = options.text if options.source is None else options.source
    return calibration(decoder, text, *sizes, field=options.field, packing=options.packing, bos=options.bos)


def measured_scores(options: argparse.Namespace, decoder: Any, unit: str, bar: Bar, **measured: Any) -> Any:
    """The scores of a decoder's units by the criterion, and on the calibration text, that the options name; measured:
    candidates, measures and samples of their own, as `pyprune.score` takes them."""
    from functools import partial

    from pyprune import scoring

    criterion, settings = chosen_criterion(options, unit)
    if options.resume and "resume" in criterion.options:
        settings["resume"] = journal_beside(options)
    if options.memory is not None:
        settings["memory"] = options.memory
    if criterion.needs != "nothing" and "input_ids" not in measured:
        settings |= _windows(options, decoder, "fit_ids" in criterion.options)
    settings |= measured
    what = f"unit {unit}" if "candidates" not in measured else f"{len(measured['candidates'])} candidates"
    return scoring.score(
        decoder,
        criterion=criterion.name,
        unit=unit,
        protect=options.protect,
        progress=partial(bar, f"scoring, {what}"),
        **settings,
    )


def chosen_amount(options: argparse.Namespace) -> dict[str, Any]:
    """What of --count, --ratio and --protect was given, as `pyprune.depth` takes it."""
    amounts = {name: getattr(options, name) for name in ("count", "ratio", "protect")}
    return {name: value for name, value in amounts.items() if value is not None}


def searched(options: argparse.Namespace, decoder: Any, method: str, amount: Any, bar: Bar) -> Any:
    """What a search removes from a decoder, by the criterion, and on the calibration text, that the options name."""
    from functools import partial

    from pyprune import scoring

    unit = options.unit or "block"
    criterion, settings = chosen_criterion(options, unit)
    return scoring.search(
        decoder,
        method=method,
        count=amount.count,
        ratio=amount.ratio,
        unit=unit,
        protect=options.protect,
        criterion=criterion.name,
        resume=journal_beside(options),
        memory=options.memory,
        progress=partial(bar, f"searching, {method}"),
        **_windows(options, decoder, "fit_ids" in criterion.options),
        **settings,
    )


def searched_with_repair(options: argparse.Namespace, decoder: Any, amount: Any, bar: Bar) -> Any:
    """What a greedy search with the options' repair after each removal removes from a decoder."""
    from functools import partial

    from pyprune.recovery import search_with_repair

    unit = options.unit or "block"
    criterion, settings = chosen_criterion(options, unit)
    windows = _windows(options, decoder, fits=True)
    return search_with_repair(
        decoder,
        windows["input_ids"],
        windows["fit_ids"],
        options.repair,
        count=amount.count,
        ratio=amount.ratio,
        unit=unit,
        protect=options.protect,
        criterion=criterion.name,
        calibration=windows["calibration"],
        memory=options.memory,
        resume=journal_beside(options),
        seed=options.seed,
        progress=partial(bar, f"searching, repairing by {options.repair}"),
        **settings,
    )


def _windows(options: argparse.Namespace, decoder: Any, fits: bool) -> dict[str, Any]:
    """The windows that score and, of the same draw, those that repairs are fitted on, if there are to be any."""
    from pyprune.scoring.calibration import set_apart

    more = (options.repair_samples or REPAIR_SAMPLES) if fits else 0
    windows = calibration_windows(options, decoder, more)
    if not fits:
        return {"input_ids": windows.input_ids, "calibration": windows.fingerprint}
    scored, fitted = set_apart(windows, options.samples, options.seed)
    return {"input_ids": scored.input_ids, "calibration": scored.fingerprint, "fit_ids": fitted.input_ids}


def chosen_device(options: argparse.Namespace) -> Any:
    """The torch device of --device, with several processes on a machine each its own GPU; InputError when it is not
    there."""
    from pyprune.models.load import require_device

    device = options.device
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    return require_device(device)


def loaded(spec: str, dtype: str | None = None, device: Any = "cpu", stream: bool = False) -> Any:
    """The decoder, without what transformers says while it loads one."""
    from pyprune.models import load

    quiet_transformers()
    return load(spec, dtype=None if dtype is None else torch_dtype(dtype), device=device, stream=stream)


def loaded_any(spec: str, dtype: str | None = None, device: Any = "cpu", stream: bool = False) -> Any:
    """The decoder of any family, as quietly: ours, or one that transformers runs (`load_any`)."""
    from transformers.utils import logging

    from pyprune.models.load_any import load_any

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return load_any(spec, dtype=None if dtype is None else torch_dtype(dtype), device=device, stream=stream)


def loaded_sizes(spec: str, dtype: str | None) -> Any:
    """The decoder without its weights, and without what transformers says about its configuration."""
    from pyprune.models import load_sizes

    quiet_transformers()
    return load_sizes(spec, dtype)


def quiet_transformers() -> None:
    """From now on, without what transformers says while it loads a model."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def torch_device(name: Any) -> Any:
    """torch's device of that name."""
    import torch

    return torch.device(name)


def torch_dtype(name: str) -> Any:
    """torch's dtype of that name."""
    import torch

    return getattr(torch, name)
