"""Texts that an original model and its pruned forms write on the same prompts, side by side."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import torch
from torch import Tensor

from pyprune.checks import require_whole
from pyprune.errors import InputError
from pyprune.evaluation.evaluate import described
from pyprune.evaluation.repetition import repeated_share, repeated_share_stderr
from pyprune.files import json_text, whole_directory
from pyprune.models import as_decoder, load
from pyprune.models.decoder import Decoder
from pyprune.runtime import Engine, SamplingParams
from pyprune.runtime.text import continuation, end_ids, until_end
from pyprune.study.page import html_page, html_table
from pyprune.study.progress import Progress, silent

FORMAT = "pyprune-samples/1"
PROMPTS = (
    "What's great about the holiday season",
    "AI can create a logo in seconds",
    "Neural network pruning is defined as",
)
"""The prompts of the paper's Tables 8, 11 and 12, which it has from Ma et al., LLM-Pruner, 2023."""
NEW_TOKENS = 64
TOP_K, TOP_P, TEMPERATURE = 50, 0.95, 1.0
"""The sampling of the paper's examples."""
GRAM = 4
SHARES = ["model", "M params", "tokens", "repeated 4-grams"]
TEXTS = ["model", "text"]
_WRAPPED = "<style>.texts td { white-space: pre-wrap; text-align: left; vertical-align: top; }</style>"


@dataclass(frozen=True)
class Samples:
    """What models wrote. `models`: one dict each, `{"name", "parameters", "dtype", "tokens" (written),
    "repeated_4grams" (share, None where nothing is as long), "repeated_4grams_stderr" (between texts, None of fewer
    than two), "texts": [{"prompt", "draw", "text", "tokens"}]}`, the original first; `text` without the prompt.
    `settings`: how they were drawn."""

    settings: dict[str, Any]
    models: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {"format": FORMAT, "settings": self.settings, "models": self.models}

    def shares(self) -> list[list[str]]:
        """A row a model: its name, millions of parameters, tokens that it wrote, and share of repeated 4-grams."""
        return [
            [
                model["name"],
                f"{model['parameters'] / 1e6:.1f}",
                str(model["tokens"]),
                "too short" if model["repeated_4grams"] is None else f"{model['repeated_4grams']:.1%}",
            ]
            for model in self.models
        ]

    def texts(self) -> list[list[str]]:
        """A row a prompt, draw and model: the model's name, and the prompt with what follows it."""
        places = range(len(self.models[0]["texts"]))
        written = [[(model["name"], model["texts"][place]) for model in self.models] for place in places]
        return [[name, text["prompt"] + text["text"]] for group in written for name, text in group]

    def markdown(self) -> str:
        """Both tables as Markdown."""
        parts = ["# Generated texts", self.introduction()]
        for header, rows in ((SHARES, self.shares()), (TEXTS, self.texts())):
            lines = [header, ["---"] * len(header), *([_markdown(cell) for cell in row] for row in rows)]
            parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        return "\n\n".join(parts) + "\n"

    def html(self) -> str:
        """Both tables as one page."""
        return html_page("Generated texts", self.parts())

    def parts(self) -> list[str]:
        """The same as parts of a page."""
        return [
            f"<p>{escape(self.introduction())}</p>",
            html_table(SHARES, self.shares()),
            f'<div class="texts">{_WRAPPED}{html_table(TEXTS, self.texts())}</div>',
        ]

    def introduction(self) -> str:
        """How the texts were drawn, in a sentence or two."""
        drawn = self.settings
        sampling = f"top-k {drawn['top_k']}, top-p {drawn['top_p']:g}, temperature {drawn['temperature']:g}"
        return (
            f"At most {drawn['max_new_tokens']} new tokens by {sampling}, seed {drawn['seed']}, "
            f"{drawn['draws']} of each prompt and model. Repeated 4-grams: 1 - distinct / total of the 4-grams of "
            "generated tokens, within each text."
        )

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write samples.json, samples.md and index.html into a new directory, whole or not at all."""
        with whole_directory(directory) as folder:
            (folder / "samples.json").write_text(json_text(self.to_dict()), encoding="utf-8")
            (folder / "samples.md").write_text(self.markdown(), encoding="utf-8")
            (folder / "index.html").write_text(self.html(), encoding="utf-8")


def samples(
    original: Any,
    *others: Any,
    prompts: Sequence[str] = PROMPTS,
    draws: int = 1,
    max_new_tokens: int = NEW_TOKENS,
    top_k: int = TOP_K,
    top_p: float = TOP_P,
    temperature: float = TEMPERATURE,
    seed: int = 0,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> Samples:
    """What each model writes on each prompt, `draws` times, and how much of it is repeated.

    original, others: what `pyprune.load` takes; one is in memory at a time. Every prompt is drawn with the same seed,
    for all models. A text ends at the model's end-of-sequence token. dtype, device: as in `pyprune.load`.
    Raises InputError for no or empty prompts, a model without tokenizer, or new tokens beyond a model's context: of
    models on this machine before any weights are read.
    Source: the paper's Tables 8, 11 and 12.
    """
    specs = [original, *others]
    if isinstance(prompts, str) or not prompts or not all(isinstance(p, str) and p for p in prompts):
        raise InputError(f"prompts {prompts!r}: one or more texts, none empty, are expected")
    for name, value in (("draws", draws), ("max_new_tokens", max_new_tokens)):
        require_whole(name, value, 1)
    greedy = temperature == 0  # where filters have no effect
    params = SamplingParams(
        max_new_tokens=max_new_tokens, temperature=temperature, seed=seed,
        top_k=None if greedy else top_k, top_p=None if greedy else top_p,
    )  # fmt: skip
    for spec in specs:
        sizes = described(spec, dtype)
        if sizes is not None:
            _prompt_ids(sizes, prompts, max_new_tokens)
    models = []
    for label, spec in zip(_names(specs), specs, strict=True):
        loads = isinstance(spec, (str, os.PathLike)) or dtype is not None
        decoder = load(spec, dtype=dtype, device=device) if loads else as_decoder(spec)
        models.append(_written(label or decoder.name, decoder, prompts, draws, max_new_tokens, params, progress))
    settings = {
        "prompts": list(prompts),
        "draws": draws,
        "max_new_tokens": max_new_tokens,
        "top_k": top_k,
        "top_p": top_p,
        "temperature": temperature,
        "seed": seed,
    }
    return Samples(settings, models)


def _written(
    name: str,
    decoder: Decoder,
    prompts: Sequence[str],
    draws: int,
    new_tokens: int,
    params: SamplingParams,
    progress: Progress,
) -> dict[str, Any]:
    """What one model writes, as an entry of `Samples.models`."""
    tokenizer, prompt_ids = decoder.tokenizer(), _prompt_ids(decoder, prompts, new_tokens)
    ends = end_ids(decoder, tokenizer)
    params = replace(params, eos_token_id=ends)
    engine = Engine(decoder, max_batch=draws, max_len=max(map(len, prompt_ids)) + new_tokens)
    texts, written = [], []
    for place, (prompt, ids) in enumerate(zip(prompts, prompt_ids, strict=True)):
        progress(f"writing, {name}", place, len(prompts))
        # A prompt at a time: what is drawn for one does not depend on the others.
        tokens = engine.generate(torch.tensor([ids] * draws, device=decoder.device), params=params)
        assert isinstance(tokens, Tensor)  # no log-probabilities were asked for
        for draw, row in enumerate(tokens.tolist()):
            new = until_end(row, ends)
            written.append(new)
            texts.append(
                {"prompt": prompt, "draw": draw, "text": continuation(tokenizer, ids, new), "tokens": len(new)}
            )
    progress(f"writing, {name}", len(prompts), len(prompts))
    return {
        "name": name,
        "parameters": decoder.parameters(),
        "dtype": str(decoder.dtype).removeprefix("torch."),
        "tokens": sum(map(len, written)),
        "repeated_4grams": repeated_share(written, GRAM),
        "repeated_4grams_stderr": repeated_share_stderr(written, GRAM),
        "texts": texts,
    }


def _prompt_ids(decoder: Decoder, prompts: Sequence[str], max_new_tokens: int) -> list[list[int]]:
    """The ids of each prompt, with the special tokens that the tokenizer adds."""
    tokenizer = decoder.tokenizer()
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    for prompt, of_prompt in zip(prompts, ids, strict=True):
        if not of_prompt:
            raise InputError(f"prompt {prompt!r}: has no tokens; text is expected")
        if max(of_prompt) >= decoder.vocab_size:
            raise InputError(
                f"{decoder.name}: token id {max(of_prompt)} is outside its vocabulary of {decoder.vocab_size}; the "
                "tokenizer and the weights must belong together"
            )
        if len(of_prompt) + max_new_tokens > decoder.max_positions:
            raise InputError(
                f"max-new-tokens {max_new_tokens}: after a prompt of {len(of_prompt)} tokens, the context of "
                f"{decoder.name} has room for at most {max(0, decoder.max_positions - len(of_prompt))}"
            )
    return ids


def _names(specs: Sequence[Any]) -> list[str | None]:
    """What the tables call the models: the last part of a path, or all of it where two are alike; None for the
    decoder's own name."""
    paths = [os.fspath(spec) if isinstance(spec, (str, os.PathLike)) else None for spec in specs]
    short = [None if path is None else os.path.basename(path.rstrip(os.sep)) or path for path in paths]
    return [path if short.count(name) > 1 else name for name, path in zip(short, paths, strict=True)]


def _markdown(text: str) -> str:
    """A text as a cell of a Markdown table, every sign as it is."""
    return re.sub(r"([\\`*_\[\]<>#|~$&])", r"\\\1", text).replace("\r", "").replace("\n", "<br>")
