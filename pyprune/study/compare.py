"""Depth against width on one model: rows of equal size, their quality, and their speed under two engines."""

from __future__ import annotations

import contextlib
import datetime
import gc
import math
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyprune import pruning, scoring
from pyprune.errors import InputError
from pyprune.models import load
from pyprune.models.decoder import Decoder
from pyprune.models.load import require_device
from pyprune.models.transformers_model import to_transformers
from pyprune.pruning import Pruning
from pyprune.pruning.budget import depth_count
from pyprune.pruning.width import METHODS, dry_run
from pyprune.runtime import Engine, memory
from pyprune.runtime.engine import MAX_BATCH
from pyprune.scoring import calibration as texts
from pyprune.scoring.scores import Scores
from pyprune.study import machine
from pyprune.study.destination import require_directory
from pyprune.study.device import synchroniser
from pyprune.study.findings import WIDTH_METHOD
from pyprune.study.measure import interleave
from pyprune.study.progress import Progress, silent
from pyprune.study.protocols import Protocol, protocol_named
from pyprune.study.report import FORMAT, render
from pyprune.study.table import REFERENCE_ROW, table

Generate = Callable[[Tensor, int], object]
"""Prompts `[batch, tokens]` and the number of new tokens for each."""


@dataclass(frozen=True)
class Row:
    """One model of the comparison: the decoder as it is timed, and how it came about."""

    name: str
    method: str
    ratio: str | None
    decoder: Decoder
    pruning: dict[str, Any] | None


@dataclass(frozen=True)
class RatioPrunings:
    """The prunings of one ratio; `widths`: method -> as it comes, and padded."""

    depth: Pruning
    widths: dict[str, tuple[Pruning, Pruning]]


@dataclass(frozen=True)
class Comparison:
    """What `compare` measured: `results` is JSON data with every raw sample, the machine, versions and texts."""

    results: dict[str, Any]

    def table(self) -> list[dict[str, Any]]:
        """One dict a row, engine, batch and output length (`pyprune.study.table.COLUMNS`)."""
        return table(self.results)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write JSON, CSV, figures and an HTML page; the directory appears whole or not at all."""
        render(self.results, directory)


def compare(
    spec: Any,
    ratios: Sequence[str | float] = ("20%",),
    batches: Sequence[int] = (1, 8),
    protocol: str | Protocol = "quick",
    dtype: torch.dtype = torch.bfloat16,
    text: str | os.PathLike[str] | None = None,
    eval_text: str | os.PathLike[str] | None = None,
    samples: int = 10,
    seq_len: int = 128,
    seed: int = 0,
    pad_multiple: int = 64,
    out: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
    device: torch.device | str = "cpu",
    *,
    methods: Sequence[str] = (WIDTH_METHOD,),
    field: str | None = None,
    packing: str = "packed",
    bos: str = "none",
) -> Comparison:
    """Compare the model with its depth-pruned, width-pruned and padded forms, in quality, latency and throughput.

    For each ratio (share of all parameters): blocks removed by PPL; for each of the width `methods`
    (`pyprune.width`, its default variant) FFN width and heads narrowed to the depth row's parameter count, and the same
    padded to `pad_multiple`. Scores and the methods' statistics are taken in the checkpoint's dtype on `samples` x
    `seq_len` calibration tokens (`text` and its rules as in `pyprune.scoring.calibration`), perplexity on held-out text
    and all timings in `dtype`, each row under Hugging Face transformers and under pyprune, interleaved. With `out`, the
    report is written there. All of it runs on `device`; on a GPU every run is timed from an idle device to an idle one.
    Raises InputError for any bad option before the model is loaded, and when the rows do not fit into memory.
    Source: the paper's Table 2 and Figures 1 and 2.
    """
    taken = protocol_named(protocol)
    names = ratio_names(ratios)
    check_batches(batches, taken)
    check_methods(methods)
    if pad_multiple < 2:
        raise InputError(f"pad multiple {pad_multiple}: an integer of at least 2 is expected")
    texts.check_window_options(samples, seq_len, seed, packing, bos)
    if out is not None:
        require_directory(out)
    place = require_device(device)
    random_model = isinstance(spec, str) and spec.startswith("shape:")
    for option, path, key in (("--text", text, field), ("--eval-text", eval_text, None)):
        if path is not None or not (random_model or isinstance(spec, Decoder)):
            texts.require_text(path, option, key)
    held_out = eval_text or texts.EVALUATION
    if texts.same_text(text or texts.CALIBRATION, held_out):
        raise InputError(f"--eval-text {held_out}: is the calibration text; another text is expected")

    progress("loading", 0, 1)
    decoder = load(spec, device=place)
    progress("loading", 1, 1)
    check_positions(decoder, taken, seq_len)
    check_ratios(decoder, names, methods)
    check_memory(decoder, len(names), max(batches), taken, dtype, len(methods))
    progress("tokenising", 0, 2)
    tokenizer = None if decoder.tokenizer_source is None else decoder.tokenizer()
    calibration = texts.calibration(
        decoder, text, samples, seq_len, seed, tokenizer, field=field, packing=packing, bos=bos
    )
    progress("tokenising", 1, 2)
    evaluation = texts.evaluation(decoder, eval_text, taken.evaluation_tokens, taken.evaluation_window, seed, tokenizer)
    progress("tokenising", 2, 2)
    prompts = prompts_from(evaluation.input_ids, max(batches), taken.input_tokens)

    prunings, scores = plan(decoder, names, methods, calibration, pad_multiple, progress)
    rows = make_rows(decoder.to(dtype=dtype), prunings)
    described = []
    for row in rows:
        value = scoring.perplexity(
            row.decoder, evaluation.input_ids, progress=partial(progress, f"perplexity, {row.name}")
        )
        described.append(describe(row, rows[0].decoder.parameters(), value))
    timings = time_rows(rows, prompts, batches, taken, progress)
    public = _public(decoder.name)
    options = {
        "ratios": names,
        "batches": list(batches),
        "dtype": str(dtype).removeprefix("torch."),
        "samples": samples,
        "seq_len": seq_len,
        "seed": seed,
        "field": field,
        "packing": packing,
        "bos": bos,
        "pad_multiple": pad_multiple,
        "methods": list(methods),
        "device": str(place),
    }
    results = {
        "format": FORMAT,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command(
            _public(os.fspath(spec)) if isinstance(spec, (str, os.PathLike)) else public,
            options,
            taken,
            text,
            eval_text,
        ),
        "model": {
            "name": public,
            "parameters": decoder.parameters(),
            "blocks": len(decoder.blocks),
            "hidden_size": decoder.hidden_size,
            "vocab_size": decoder.vocab_size,
        },
        "settings": options,
        "protocol": taken.to_json(),
        "calibration": calibration.fingerprint,
        "evaluation": evaluation.fingerprint,
        "machine": machine.describe(),
        "scores": {**scores.to_dict(), "model": public},
        "rows": described,
        "timings": timings,
    }
    comparison = Comparison(results)
    if out is not None:
        comparison.save(out)
    return comparison


def ratio_names(ratios: Sequence[str | float]) -> list[str]:
    """The ratios as percentages, each once; InputError for none, a repeated one, a count, or one outside (0, 1)."""
    names = []
    for given in ratios:
        names.append(f"{100 * pruning.parse_ratio(str(given)):g}%")
    _require_different("ratios", names)
    return names


def check_batches(batches: Sequence[int], protocol: Protocol) -> None:
    """Raise InputError for no or repeated batch sizes, one below 1, or one the evaluation text has no prompts for."""
    _require_different("batch", batches)
    prompts = min(MAX_BATCH, protocol.evaluation_tokens // protocol.input_tokens)
    for batch in batches:
        if not 1 <= batch <= prompts:
            raise InputError(f"batch {batch}: 1 to {prompts} prompts are accepted under the protocol {protocol.name}")


def check_methods(methods: Sequence[str]) -> None:
    """Raise InputError for no or repeated width methods, or one that there is not."""
    _require_different("methods", methods)
    for method in methods:
        if method not in METHODS:
            raise InputError(f"method {method!r}: {', '.join(METHODS)} are accepted")


def check_ratios(decoder: Decoder, ratios: Sequence[str], methods: Sequence[str]) -> None:
    """Raise InputError when some ratio has no depth-pruned form of this model, or no width of the same size."""
    for name in ratios:
        ratio = pruning.parse_amount(name).ratio
        assert ratio is not None
        depth_count(decoder, ratio)
        for method in methods:
            dry_run(decoder, method, ratio=ratio)


def check_positions(decoder: Decoder, protocol: Protocol, seq_len: int) -> None:
    """Raise InputError when the model's context is shorter than what the protocol or the calibration needs."""
    needed = max(protocol.input_tokens + max(protocol.output_tokens), protocol.evaluation_window, seq_len)
    if needed > decoder.max_positions:
        raise InputError(
            f"{decoder.name}: a context of {decoder.max_positions} tokens; the protocol {protocol.name} with seq-len "
            f"{seq_len} needs {needed}"
        )


def check_memory(
    decoder: Decoder, ratios: int, batch: int, protocol: Protocol, dtype: torch.dtype, methods: int = 1
) -> None:
    """Raise InputError, with both numbers, when all rows and their caches together will not fit into free memory."""
    needed = needed_bytes(decoder, ratios, batch, protocol, dtype, methods)
    available = memory.available(decoder.device)
    if available is not None and needed > available:
        raise InputError(
            f"{decoder.name}: the comparison needs about {needed} bytes more and {available} are available on "
            f"{decoder.device}; "
            "fewer ratios, a smaller batch or a smaller model is expected"
        )


def needed_bytes(
    decoder: Decoder, ratios: int, batch: int, protocol: Protocol, dtype: torch.dtype, methods: int = 1
) -> int:
    """An upper estimate of what the comparison allocates beyond the loaded model.

    For timing: the model in `dtype`, two narrowed copies a ratio and width method, and for all rows a cache and logits;
    the depth row shares the original's weights. Scoring plans its own memory.
    """
    parameters, size = decoder.parameters(), dtype.itemsize
    rows = 1 + ratios * (1 + 2 * methods)
    length = protocol.input_tokens + max(protocol.output_tokens)
    caches = rows * batch * length * kv_bytes(decoder) // decoder.dtype.itemsize * size
    logits = 2 * max(batch, 8) * protocol.evaluation_window * decoder.vocab_size * 4
    copies = (0 if decoder.dtype == dtype else 1) + 2 * ratios * methods
    return copies * parameters * size + caches + logits


def prompts_from(evaluation: Tensor, batch: int, tokens: int) -> Tensor:
    """`[batch, tokens]` prompts, one after the other from the evaluation text."""
    ids = evaluation.flatten()
    if len(ids) < batch * tokens:
        raise InputError(
            f"batch {batch}: the evaluation text has {len(ids)} tokens, and {batch} prompts of {tokens} need "
            f"{batch * tokens}"
        )
    return ids[: batch * tokens].view(batch, tokens)


def plan(
    decoder: Decoder,
    ratios: Sequence[str],
    methods: Sequence[str],
    calibration: texts.Windows,
    pad_multiple: int,
    progress: Progress = silent,
) -> tuple[dict[str, RatioPrunings], Scores]:
    """The depth, width and padded prunings of each ratio, and the scores that chose the blocks.

    The model is scored in its checkpoint's dtype (on a CPU with float32 activations), whatever dtype is timed. Width
    is matched to the depth row's actual parameter count, not to the ratio.
    """
    scores = scoring.score(
        decoder,
        calibration.input_ids,
        criterion="ppl",
        unit="block",
        calibration=calibration.fingerprint,
        progress=partial(progress, "scoring"),
    )
    prunings = {}
    for ratio in ratios:
        depth = pruning.depth(scores, decoder, ratio=pruning.parse_amount(ratio).ratio)
        target, widths = pruning.apply(decoder, depth).parameters(), {}
        for method in methods:
            label = f"{method} {ratio}"
            progress(label, 0, 1)
            width = pruning.width(
                decoder,
                method,
                target_parameters=target,
                calibration=calibration.input_ids if METHODS[method].calibrated else None,
                progress=partial(progress, label),
            )
            widths[method] = width | Pruning(pad_to=1), width | Pruning(pad_to=pad_multiple)
            progress(label, 1, 1)
        prunings[ratio] = RatioPrunings(depth, widths)
    return prunings, scores


def make_rows(decoder: Decoder, prunings: dict[str, RatioPrunings]) -> list[Row]:
    """The original and, for each ratio, its pruned forms, all in the decoder's dtype."""
    rows = [Row(REFERENCE_ROW, "original", None, decoder, None)]
    for ratio, made in prunings.items():
        shorter = pruning.apply(decoder, made.depth)
        rows.append(Row(f"depth {ratio}", "depth", ratio, shorter, made.depth.to_dict()))
        for method, (width, padded) in made.widths.items():
            name = f"{method} {ratio}"
            wider = pruning.apply(decoder, padded)
            rows.append(Row(name, method, ratio, pruning.apply(decoder, width), width.to_dict()))
            # The long list of neurons stands once, in the row that it repeats.
            told = {"as": name, "pad_to": padded.pad_to}
            rows.append(Row(f"{name}, padded", f"{method} padded", ratio, wider, told))
    return rows


def describe(row: Row, original_parameters: int, perplexity: float) -> dict[str, Any]:
    """The row's sizes and quality as JSON data; sizes that differ between blocks are given as "least-greatest"."""
    decoder = row.decoder
    heads = [(block.mha.heads, block.mha.kv_heads) for block in decoder.blocks if block.mha is not None]
    widths = [block.ffn.width for block in decoder.blocks if block.ffn is not None]
    parameters = decoder.parameters()
    return {
        "name": row.name,
        "method": row.method,
        "ratio": row.ratio,
        "parameters": parameters,
        "removed_share": 1 - parameters / original_parameters,
        "blocks": len(decoder.blocks),
        "ffn_width": _range(widths),
        "heads": _range([count for count, _ in heads]),
        "kv_heads": _range([count for _, count in heads]),
        "bytes_per_token": decoder.bytes_per_token(),
        "kv_bytes_per_position": kv_bytes(decoder),
        "ppl": perplexity if math.isfinite(perplexity) else None,
        "pruning": row.pruning,
    }


def kv_bytes(decoder: Decoder) -> int:
    """Bytes of KV cache that one position of one sequence takes over all blocks, in the decoder's dtype."""
    halves = [block.mha for block in decoder.blocks if block.mha is not None]
    return sum(2 * mha.kv_heads * mha.head_dim for mha in halves) * decoder.dtype.itemsize


def time_rows(
    rows: Sequence[Row], prompts: Tensor, batches: Sequence[int], protocol: Protocol, progress: Progress = silent
) -> list[dict[str, Any]]:
    """Raw seconds of each row under each engine, for each batch and output length, all interleaved round by round.

    The prompts are moved to the rows' device; both engines get them there.
    """
    device = rows[0].decoder.device
    prompts, synchronise = prompts.to(device), synchroniser(device)
    longest = protocol.input_tokens + max(protocol.output_tokens)
    engines: dict[tuple[str, str], Generate] = {}
    for row in rows:
        engines[row.name, "hf"] = hugging_face(row.decoder)
        engines[row.name, "pyprune"] = ours(row.decoder, max(batches), longest)
    timings = []
    total = len(batches) * len(protocol.output_tokens)
    for turn, (batch, length) in enumerate((b, n) for b in batches for n in protocol.output_tokens):
        runnables = {key: partial(generate, prompts[:batch], length) for key, generate in engines.items()}
        stage = f"timing {turn + 1} of {total}, batch {batch}, {length} tokens"
        # A collection in the middle of a run would be charged to whoever happens to allocate then.
        with _no_collection():
            samples = interleave(
                runnables, protocol.runs, protocol.warmups, done=partial(progress, stage), synchronise=synchronise
            )
        timings += [
            {"row": name, "engine": engine, "batch": batch, "output_tokens": length, "seconds": seconds}
            for (name, engine), seconds in samples.items()
        ]
    return timings


def hugging_face(decoder: Decoder) -> Generate:
    """Greedy `generate` of transformers: sdpa attention, not compiled, its default cache made anew for every call."""
    from transformers import GenerationConfig

    model = to_transformers(decoder, attn_implementation="sdpa")
    # Not the checkpoint's own settings: beams or penalties would time something else. Without an EOS no step is checked
    # for one and none has to be forbidden: exactly `length` tokens, as under pyprune.
    model.generation_config = GenerationConfig(pad_token_id=decoder.pad_token_id())

    @torch.inference_mode()
    def generate(prompts: Tensor, length: int) -> Tensor:
        return model.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=length)

    return generate


def ours(decoder: Decoder, batch: int, length: int) -> Generate:
    """Greedy `Engine.generate`, its buffers for `batch` sequences of `length` tokens made once."""
    engine = Engine(decoder, max_batch=batch, max_len=length)
    return lambda prompts, new: engine.generate(prompts, max_new_tokens=new)


def command(
    spec: str,
    options: dict[str, Any],
    protocol: Protocol,
    text: str | os.PathLike[str] | None,
    eval_text: str | os.PathLike[str] | None,
) -> str:
    """The shell command that measures this again, with the last part of each path only: folders are not published."""
    words = ["pyprune", "compare", spec]
    words += ["--ratios", ",".join(options["ratios"]), "--batch", ",".join(map(str, options["batches"]))]
    words += ["--protocol", protocol.name, "--dtype", options["dtype"], "--samples", str(options["samples"])]
    words += ["--seq-len", str(options["seq_len"]), "--seed", str(options["seed"])]
    words += ["--pad-to", str(options["pad_multiple"])]
    for name, usual in (("field", None), ("packing", "packed"), ("bos", "none")):
        words += [f"--{name}", options[name]] if options[name] != usual else []
    if options["methods"] != [WIDTH_METHOD]:
        words += ["--methods", ",".join(options["methods"])]
    words += ["--device", options["device"]] if options["device"] != "cpu" else []
    for name, path in (("--text", text), ("--eval-text", eval_text)):
        words += [name, texts.public_name(path)] if path is not None else []
    return shlex.join([*words, "--out", "compare"])


@contextlib.contextmanager
def _no_collection() -> Any:
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _require_different(name: str, values: Sequence[Any]) -> None:
    if not values or len(set(values)) < len(values):
        given = ", ".join(map(str, values)) or "none"
        raise InputError(f"{name} {given}: one or more different values are expected")


def _public(name: str) -> str:
    """A model's name without the folders of an absolute path."""
    return os.path.basename(name.rstrip(os.sep)) if os.path.isabs(name) else name


def _range(values: Sequence[int]) -> int | str:
    if not values:
        return "none"
    return values[0] if len(set(values)) == 1 else f"{min(values)}-{max(values)}"
