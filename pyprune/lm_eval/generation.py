"""Texts continued until a stop string, as lm-eval asks for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.runtime.engine import Engine
from pyprune.runtime.sampling_params import SamplingParams
from pyprune.runtime.skip import Skip

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")


def sampling(options: Mapping[str, Any], new_tokens: int, stops: Sequence[int]) -> SamplingParams:
    """lm-eval's generation arguments, without `until` and the number of tokens, as `SamplingParams`.

    `do_sample=False` is greedy whatever else they say, as in transformers. InputError for one that is not known.
    """
    options = dict(options)
    sampled = options.pop("do_sample", None)
    unknown = sorted(set(options) - set(SAMPLING))
    if unknown:
        raise InputError(f"gen_kwargs: {unknown[0]}={options[unknown[0]]!r}; {', '.join(SAMPLING)} are accepted")
    greedy = not (float(options.get("temperature", 0.0)) > 0 if sampled is None else sampled)
    if greedy:
        options = {name: value for name, value in options.items() if name == "repetition_penalty"}
    else:
        options["temperature"] = float(options.get("temperature", 0.0)) or 1.0
    return SamplingParams(max_new_tokens=new_tokens, eos_token_id=list(stops) or None, **options)


def continued(
    engine: Engine,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    until: Sequence[str],
    params: SamplingParams,
    skip: Skip,
) -> list[str]:
    """What follows each prompt, up to the end of text or the first of the stop strings, which is left out.

    Generation ends when every text has a stop string, an end of text, or all its tokens.
    """
    until = [stop for stop in until if stop]
    ends = set(params.eos_token_id or ())  # type: ignore[arg-type]  # checked: a list of ids
    tails = max([len(tokenizer.encode(stop, add_special_tokens=False)) + 2 for stop in until], default=0)
    new: list[list[int]] = [[] for _ in prompts]
    open_texts = set(range(len(prompts)))
    for tokens in engine.stream(*_padded(prompts, engine.decoder.device), skip=skip, params=params):
        assert isinstance(tokens, torch.Tensor)  # no log-probabilities were asked for
        for b, token in enumerate(tokens.tolist()):
            if b not in open_texts:
                continue
            new[b].append(token)
            if token in ends or any(stop in tokenizer.decode(new[b][-tails:]) for stop in until):
                open_texts.remove(b)
        if not open_texts:
            break
    return [_until(tokenizer.decode(ids, skip_special_tokens=True), until) for ids in new]


def _until(text: str, until: Sequence[str]) -> str:
    for stop in until:
        text = text.split(stop)[0]
    return text


def _padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, both `[B, T]`, padded on the right."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts])
    mask = torch.arange(longest) < torch.tensor([len(prompt) for prompt in prompts])[:, None]
    return ids.to(device), mask.to(torch.int64).to(device)
