"""What `pyprune generate` does around the engine: text to prompts, new tokens to text, at once or as they come."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from pyprune.errors import InputError

RANDOM_PROMPT_TOKENS = 12


def check_options(options: argparse.Namespace) -> None:
    """Raise InputError for prompts that do not go with the model, or options that do not go together."""
    random_ids = options.model.startswith("shape:")
    if options.prompt is None and not random_ids:
        raise InputError("generate: --prompt TEXT is expected (only shape: models, which have no tokenizer, need none)")
    for prompt in options.prompt or []:
        if random_ids:
            raise InputError(f"--prompt {prompt!r}: {options.model} has no tokenizer; it continues random ids instead")
        if not prompt:
            raise InputError(f"--prompt {prompt!r}: a text that is not empty is expected")
    if options.stream and options.json:
        raise InputError("--stream: prints text as it comes and does not go with --json")
    if options.stream and len(options.prompt or []) > 1:
        raise InputError(f"--stream: one --prompt is expected; {len(options.prompt)} were given")
    for name in ("top_k", "top_p", "min_p"):
        if options.temperature == 0 and getattr(options, name) is not None:
            option = f"--{name.replace('_', '-')} {getattr(options, name)}"
            raise InputError(
                f"{option}: has no effect at temperature 0, the likeliest token; --temperature is expected"
            )
    if options.logprobs and not options.json:
        raise InputError("--logprobs: belongs to --json, which was not given")


def pruning_of(options: argparse.Namespace) -> Any:
    """The pruning that the options leave out; InputError when its file narrows widths, which no skip can."""
    from pyprune.pruning import Pruning

    pruning = Pruning.from_skip({"blocks": options.skip, "mha": options.skip_mha, "ffn": options.skip_ffn})
    if options.pruning is not None:
        pruning |= Pruning.from_json(options.pruning)
    pruning.skip_sets()
    return pruning


def sampling_of(options: argparse.Namespace) -> Any:
    """The SamplingParams of the options, without what ends a text; InputError, naming the option, out of bounds."""
    from pyprune.runtime import SamplingParams

    try:
        return SamplingParams(
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            min_p=options.min_p,
            repetition_penalty=options.repetition_penalty,
            seed=options.seed,
            logprobs=options.logprobs,
        )
    except InputError as error:
        name, _, reason = str(error).partition(":")
        raise InputError(f"--{name.replace('_', '-')}:{reason}") from None


class Continuations:
    """The prompts of a `generate` command, and the engine that continues them as `params` says.

    InputError for a prompt without tokens or one that leaves no room for the new ones.
    """

    def __init__(self, options: argparse.Namespace, decoder: Any, pruning: Any, params: Any) -> None:
        from pyprune.runtime import Engine
        from pyprune.runtime.text import end_ids, padded

        self._texts = options.prompt
        self._tokenizer = None if options.prompt is None else decoder.tokenizer()
        self._prompts = _prompt_ids(options, decoder, self._tokenizer)
        self._end_ids = end_ids(decoder, self._tokenizer)
        self._ids, self._mask = padded(self._prompts, decoder.device)
        self._engine = Engine(
            decoder,
            max_batch=len(self._prompts),
            max_len=self._ids.shape[1] + options.max_new_tokens,
            prefill_chunk=options.prefill_chunk,
            weight_format=options.weight_format,
        )
        self._skip = pruning
        self._params = replace(params, eos_token_id=self._end_ids)

    def sequences(self) -> list[dict[str, Any]]:
        """Each prompt with its new ids, without padding, and their text (None without a tokenizer)."""
        from pyprune.runtime.text import continuation, until_end

        result = self._engine.generate(self._ids, self._mask, skip=self._skip, params=self._params)
        tokens, logprobs = result if isinstance(result, tuple) else (result, None)
        sequences = []
        for i, (prompt, row) in enumerate(zip(self._prompts, tokens.tolist(), strict=True)):
            new = until_end(row, self._end_ids)
            sequence = {"prompt": self._texts and self._texts[i], "prompt_ids": prompt, "ids": new}
            sequence["text"] = self._tokenizer and continuation(self._tokenizer, prompt, new)
            if logprobs is not None:
                sequence["logprobs"] = logprobs[i, : len(new)].tolist()
            sequences.append(sequence)
        return sequences

    def print_as_it_comes(self) -> None:
        """Print the first prompt's continuation token by token."""
        from pyprune.runtime.text import continuation

        stream = self._engine.stream(self._ids, self._mask, skip=self._skip, params=self._params)
        steps = (int(tokens[0]) for tokens in stream)
        if self._tokenizer is None:
            return print_as_it_comes(steps, lambda new: " ".join(map(str, new)))
        print(self._texts[0], end="", flush=True)
        return print_as_it_comes(steps, lambda new: continuation(self._tokenizer, self._prompts[0], new))


def print_as_it_comes(tokens: Iterable[int], text_of: Callable[[list[int]], str]) -> None:
    """Print the text of the tokens so far, as far as it is new, after each of them."""
    new: list[int] = []
    shown = text = ""
    for token in tokens:
        new.append(token)
        text = text_of(new)
        if not text.endswith("\ufffd"):  # else the bytes of a character are not complete yet
            print(text[len(shown) :], end="", flush=True)
            shown = text
    print(text[len(shown) :])


def _prompt_ids(options: argparse.Namespace, decoder: Any, tokenizer: Any) -> list[list[int]]:
    """The ids of each prompt; random ones without a tokenizer."""
    from pyprune.scoring.calibration import random_windows

    if tokenizer is None:
        windows = random_windows(decoder.vocab_size, 1, RANDOM_PROMPT_TOKENS, options.seed or 0)
        prompts = windows.input_ids.tolist()
    else:
        prompts = [tokenizer(prompt)["input_ids"] for prompt in options.prompt]
    for i, ids in enumerate(prompts):
        if not ids:
            raise InputError(f"--prompt {options.prompt[i]!r}: has no tokens; text is expected")
        if len(ids) + options.max_new_tokens > decoder.max_positions:
            raise InputError(
                f"--max-new-tokens {options.max_new_tokens}: after a prompt of {len(ids)} tokens, the context of "
                f"{decoder.name} has room for at most {max(0, decoder.max_positions - len(ids))}"
            )
    return prompts
