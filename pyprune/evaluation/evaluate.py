"""`evaluate`: a model's quality on a text and on tasks, by one call."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy
import torch

from pyprune.checks import require_whole
from pyprune.errors import InputError
from pyprune.evaluation.perplexity import window_losses
from pyprune.evaluation.protocol import PerplexityProtocol
from pyprune.evaluation.result import Evaluation
from pyprune.evaluation.tasks import (
    StageProgress,
    Tasks,
    evaluate_tasks,
    require_loadable,
    require_tasks,
    tasks_journal,
)
from pyprune.evaluation.texts import read_text_of
from pyprune.evaluation.windows import TextWindows, windows_of
from pyprune.files import read_json
from pyprune.models import load_sizes
from pyprune.models.decoder import Decoder
from pyprune.models.demo import DEMO_MODEL
from pyprune.models.load_any import AnyDecoder, as_any_decoder, is_ours, load_any
from pyprune.models.shapes import PREFIX
from pyprune.models.tensors import as_dtype
from pyprune.models.tokenizers import load_tokenizer
from pyprune.scoring.calibration.sources import Source


def evaluate(
    model: Any,
    ppl: str | os.PathLike[str] | torch.Tensor | numpy.ndarray | Source | None = None,
    tasks: str | Sequence[str] | Tasks | None = None,
    limit: int | None = None,
    data: str | os.PathLike[str] | None = None,
    window: int | Literal["full"] = 128,
    bos: str = "first",
    join: str = "raw",
    *,
    stride: int | None = None,
    tokens: int | None = None,
    field: str | None = None,
    log_samples: str | os.PathLike[str] | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    stream: bool = False,
    memory: int | None = None,
    resume: str | os.PathLike[str] | None = None,
    progress: StageProgress | None = None,
) -> Evaluation:
    """The perplexity of a whole text, and accuracies on tasks.

    model: what `pyprune.load` takes; for the perplexity also a model of another family of transformers. ppl: a text
    file, `wikitext2`, `ptb`, `hf:NAME[:CONFIG][:SPLIT]`, `demo:NAME`, or token ids (a tensor, .npy, .safetensors).
    window: tokens in each, or "full", the model's context. stride: how many tokens after one window the next begins
    (`PerplexityProtocol`). bos: "none", "first" (where the tokenizer has one) or "each". join: "raw", the text as it
    stands, or "rows", its rows joined by blank lines; with "rows", window 128 and bos "first" it is the protocol of the
    paper's code. tokens: at most so many from the beginning of the text. field: the key or column that holds the text.
    tasks: lm-eval's names, or "paper" for all seven of the paper. limit: documents a task. data: a folder of local data
    for tasks. log_samples: a file for each document's answers, JSON lines. dtype, device, stream: as in `pyprune.load`;
    a loaded model stays on its device. memory: bytes that the perplexity may take beyond the model. resume: the
    perplexity's journal: finished windows are kept in it, and not computed again; the tasks' answers stand in a second
    file beside it (`tasks_journal`).

    Raises InputError, before the model's weights are read where that can be known: nothing to evaluate, a text that is
    missing or shorter than a window, a tokenizer that is missing or does not fit the vocabulary, a limit below 1, a
    task that does not exist, data of a task that lacks a field.
    Source: Shortened LLaMA, section 4, Evaluation.
    """
    if ppl is None and tasks is None:
        raise InputError("evaluate: nothing to evaluate; ppl or tasks is expected")
    protocol = PerplexityProtocol(window, stride, join, bos)
    for name, value in (("limit", limit), ("tokens", tokens)):
        if value is not None:
            require_whole(name, value, 1)
    if tasks is not None:
        tasks = require_tasks(tasks, data=data, limit=limit)
    source = None if ppl is None else read_text_of(ppl, join, field)

    windows = None
    sizes = described(model, dtype)
    if sizes is not None:  # what configuration and tokenizer tell comes before the weights
        windows = None if source is None else windows_of(sizes, source, protocol, tokens=tokens)
        if tasks is not None:
            load_tokenizer(sizes.tokenizer_source, sizes.name)
    decoder = loaded(model, dtype, device, stream)
    if source is not None and windows is None:
        windows = windows_of(decoder, source, protocol, tokens=tokens)
    del source  # a long text need not stay in memory
    if tasks is not None:
        if not isinstance(decoder, Decoder):
            raise InputError(f"tasks: {decoder.name} is of a family whose perplexity alone can be measured")
        if windows is not None:
            require_loadable(tasks)

    measured = {} if windows is None else perplexity_of(decoder, windows, memory, resume, progress)
    if tasks is not None and isinstance(decoder, Decoder):  # of others it is told above
        measured["tasks"] = evaluate_tasks(
            decoder, decoder.tokenizer(), tasks, log_samples=log_samples,
            resume=None if resume is None else tasks_journal(resume), progress=progress,
        )  # fmt: skip
    return Evaluation(model=decoder.name, dtype=str(decoder.dtype).removeprefix("torch."), **measured)


def perplexity_of(
    decoder: AnyDecoder,
    windows: TextWindows,
    memory: int | None = None,
    resume: str | os.PathLike[str] | None = None,
    progress: StageProgress | None = None,
) -> dict[str, Any]:
    """The fields of an `Evaluation` that a text gives."""
    losses = window_losses(
        decoder, windows.input_ids, windows.targets, windows.bytes, memory=memory, resume=resume,
        progress=None if progress is None else partial(progress, "perplexity"),
    )  # fmt: skip
    return {
        "perplexity": losses.perplexity,
        "stderr": losses.stderr,
        "bits_per_byte": losses.bits_per_byte,
        "text": windows.description(),
    }


def described(model: Any, dtype: torch.dtype | str | None = None) -> Decoder | None:
    """The sizes and the tokenizer of a model that is named and on this machine, without its weights.

    None for loaded models, for other families than ours, which are read whole, and for hub names, of which the
    configuration alone would be downloaded first, and no tokenizer.
    """
    if not isinstance(model, (str, os.PathLike)):
        return None
    name = os.fspath(model)
    config = Path(name) / "config.json"
    raw = read_json(config) if config.is_file() else {}
    if isinstance(raw, dict) and "model_type" in raw and not is_ours(raw["model_type"]):
        return None
    if name == DEMO_MODEL or name.startswith(PREFIX) or Path(name).exists():
        return load_sizes(model, dtype)
    return None


def loaded(
    model: Any, dtype: torch.dtype | str | None = None, device: torch.device | str = "cpu", stream: bool = False
) -> AnyDecoder:
    """The decoder: loaded by its name; a loaded model stays where it is."""
    if isinstance(model, (str, os.PathLike)) or stream:
        return load_any(model, dtype=dtype, device=device, stream=stream)
    decoder = as_any_decoder(model)
    if dtype is None:
        return decoder
    if not isinstance(decoder, Decoder):
        raise InputError(f"dtype {dtype}: {decoder.name} runs in its own dtype; a model loaded in {dtype} is expected")
    return decoder.to(as_dtype(dtype))
