"""Depth against width on one model: rows of equal size, their quality, and their speed under two engines."""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass, replace
from typing import Any

from pyprune.models import load
from pyprune.models.decoder import Decoder
from pyprune.models.load import require_device
from pyprune.scoring import calibration as texts
from pyprune.scoring.journal import weights_digest
from pyprune.study import machine
from pyprune.study.config import CompareConfig, checkpoint_pairs
from pyprune.study.destination import require_directory
from pyprune.study.evaluations import Material
from pyprune.study.progress import Progress, silent
from pyprune.study.report import FORMAT, save
from pyprune.study.requirements import ReadTexts, check_checkpoints, check_model, check_texts, prompts_from
from pyprune.study.room import Room
from pyprune.study.rows import choose_prunings, evaluated, make_rows
from pyprune.study.table import table
from pyprune.study.timing import time_rows
from pyprune.study.unfinished import Unfinished


@dataclass(frozen=True)
class Comparison:
    """What `compare` measured: `results` is JSON data with every raw sample, the machine, versions and texts."""

    results: dict[str, Any]

    def table(self) -> list[dict[str, Any]]:
        """One dict a row, engine, batch and output length (`pyprune.study.columns`)."""
        return table(self.results)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write JSON, CSV, figures and an HTML page. results.json comes first, so that it stays whatever fails then."""
        save(self.results, directory)


def compare(
    spec: Any,
    config: CompareConfig | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: Progress = silent,
    **options: Any,
) -> Comparison:
    """Compare the model with its depth-pruned, width-pruned and padded forms, in quality, latency and throughput.

    `spec` as in `pyprune.load`. What is measured is said by a `CompareConfig`, or by its `options` (and those of its
    `CalibrationConfig`) as keywords. For each ratio: units removed by each depth criterion; for each width method (its
    default variant) FFN width and heads narrowed to the first depth row's parameter count, and the same padded; then
    the checkpoints. Scores and the methods' statistics are taken in the checkpoint's dtype on the calibration text,
    evaluations on held-out text and all timings in the configured dtype, each row under Hugging Face transformers and
    under pyprune, interleaved. On a GPU every run is timed from an idle device to an idle one. A row that does not fit
    into memory beside those before it says so in the results.
    With `out`, the report is written there, and until then what is finished is kept beside it, in OUT.unfinished: the
    scores, each row's evaluation, its answers on tasks, each batch and output length. With `resume` that is not done
    again.
    Raises InputError for any bad option before the model is loaded, when not even the original fits into memory, and
    for what an interrupted comparison left, without `resume` or of other settings, texts, weights or another machine.
    Source: the paper's Table 2 and Figures 1 and 2.
    """
    if config is not None and options:
        raise TypeError(f"compare: a configuration and {', '.join(options)}: one of them is expected")
    config = config or CompareConfig.of(**options)
    if out is not None:
        require_directory(out)
    config = replace(config, device=str(require_device(config.device)))
    sources = check_texts(spec, config)
    check_checkpoints(config)
    for evaluation in config.evaluations:
        evaluation.check()
    here = machine.describe()
    kept = Unfinished.open(out, _settled(spec, config, here), resume)

    progress("loading", 0, 1)
    decoder = load(spec, device=config.device)
    progress("loading", 1, 1)
    check_model(decoder, config)
    calibration, material = tokenised(decoder, config, sources, progress)
    del sources  # a long text need not stay in memory while rows are timed
    kept.require(
        weights=weights_digest(decoder.sizes().tensors()),
        calibration=calibration.fingerprint,
        evaluation=material.windows.fingerprint,
    )
    prompts = prompts_from(material.windows.input_ids, max(config.batches), config.timing.input_tokens)

    prunings, scores = choose_prunings(decoder, config, calibration, kept, progress)
    shortest = config.timing.input_tokens + min(config.timing.output_tokens)
    room = Room(decoder.device, min(config.batches), shortest)
    rows = make_rows(decoder, prunings, config.torch_dtype, checkpoint_pairs(config.checkpoints), room)
    kept.require(
        checkpoints={row.name: weights_digest(row.decoder.sizes().tensors()) for row in rows if row.source is not None}
    )
    entries = evaluated(rows, config.evaluations, replace(material, journal=kept.journal), kept)
    timings, shortages = time_rows(rows, prompts, config.batches, config.timing, progress, kept)
    results = {
        **subject(spec, decoder, config, scores),
        "calibration": calibration.fingerprint,
        "evaluation": material.windows.fingerprint,
        "machine": here,
        "rows": entries,
        "timings": timings,
        "oom": shortages,
    }
    comparison = Comparison(results)
    if out is not None:
        comparison.save(out)
        kept.remove()
    return comparison


def _settled(spec: Any, config: CompareConfig, here: dict[str, Any]) -> dict[str, Any]:
    """What results depend on, as far as it is known before the model is loaded: what is resumed must have the same."""
    return {
        "model": public_model_name(os.fspath(spec)) if isinstance(spec, (str, os.PathLike)) else type(spec).__name__,
        "settings": config.to_json(),
        "protocol": config.timing.to_json(),
        "evaluations": {evaluation.name: evaluation.settings() for evaluation in config.evaluations},
        "machine": machine.lasting(here),
    }


def tokenised(
    decoder: Decoder, config: CompareConfig, sources: ReadTexts, progress: Progress = silent
) -> tuple[texts.Windows, Material]:
    """The calibration windows, and the held-out ones with what else evaluations need. `sources`: texts that are read
    already."""
    wanted, protocol = config.calibration, config.timing
    progress("tokenising", 0, 2)
    tokenizer = None if decoder.tokenizer_source is None else decoder.tokenizer()
    calibration = texts.calibration(
        decoder, sources.calibration or wanted.text, wanted.samples, wanted.seq_len, wanted.seed, tokenizer,
        field=wanted.field, packing=wanted.packing, bos=wanted.bos,
    )  # fmt: skip
    progress("tokenising", 1, 2)
    held_out = texts.evaluation(
        decoder,
        sources.held_out or config.eval_text,
        protocol.evaluation_tokens,
        protocol.evaluation_window,
        wanted.seed,
        tokenizer,
    )
    progress("tokenising", 2, 2)
    return calibration, Material(held_out, tokenizer, progress)


def subject(spec: Any, decoder: Decoder, config: CompareConfig, scores: dict[str, Any]) -> dict[str, Any]:
    """What is compared, and how, as JSON data; without the folders of an absolute path."""
    name = public_model_name(decoder.name)
    (_, first), *more = ((method, {**record, "model": name}) for method, record in scores.items())
    others = dict(more)
    named = public_model_name(os.fspath(spec)) if isinstance(spec, (str, os.PathLike)) else name
    return {
        "format": FORMAT,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": config.command(named),
        "model": {
            "name": name,
            "parameters": decoder.parameters(),
            "blocks": len(decoder.blocks),
            "hidden_size": decoder.hidden_size,
            "vocab_size": decoder.vocab_size,
        },
        "settings": config.to_json(),
        "evaluations": {evaluation.name: evaluation.settings() for evaluation in config.evaluations},
        "protocol": config.timing.to_json(),
        "scores": first,
        "other_scores": others,
    }


def public_model_name(name: str) -> str:
    """A model's name without the folders of an absolute path."""
    return os.path.basename(name.rstrip(os.sep)) if os.path.isabs(name) else name
