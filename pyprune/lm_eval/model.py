"""`pyprune`, a model of lm-eval: the same answers as its `hf` model, each document's context read once."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, has_bos_prefix, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from pyprune.checks import require_whole
from pyprune.errors import InputError
from pyprune.lm_eval.generation import continued, sampling
from pyprune.models.load import load
from pyprune.models.tokenizers import TokenizerSource, load_tokenizer
from pyprune.runtime.endings import TOKENS, Answer, answers, ending
from pyprune.runtime.engine import MAX_BATCH, Engine
from pyprune.runtime.skip import skip_plan

Pair = tuple[tuple[str, str] | None, list[int], list[int]]
"""Context and continuation as text, and as tokens."""

MAX_NEW_TOKENS = 256  # where a task does not say, as lm-eval's `hf` model has it
GENERATED_AT_ONCE = 16
_SKIP = re.compile(r"(?:^|,)skip=(\[[^\]]*\]|[^,]*(?:,\d+)*(?![^,]))")


@register_model("pyprune")
class PyPruneLM(TemplateLM):
    """A pyprune decoder for lm-eval.

    pretrained: what `pyprune.load` takes: a path or name, a pruned directory, a Decoder, a PreTrainedModel.
    tokenizer: a transformers tokenizer, or where one is; the model's own when None. skip: blocks to leave out at run
    time ("10,11", a list, a `Pruning`). dtype, device: as in `load`. max_length: tokens that the model reads at most;
    its context when None. add_bos_token, prefix_token_id: as in lm-eval's `hf` model
    (a tokenizer object is taken as it is). tokens: how many are read at
    once; `batch_size` and `max_batch_size` bound the texts that are generated at once, and nothing else.

    InputError for what cannot be loaded, and for an unknown argument.
    """

    def __init__(
        self,
        pretrained: Any = None,
        *,
        tokenizer: Any = None,
        skip: Any = None,
        dtype: Any = None,
        device: Any = None,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        tokens: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            accepted = "pretrained, tokenizer, skip, dtype, device, max_length, add_bos_token, prefix_token_id, tokens"
            name, value = next(iter(unknown.items()))
            raise InputError(f"{name}={value!r}: not an argument of the model pyprune; {accepted} are accepted")
        if pretrained is None:
            raise InputError("pretrained: none given; a model, such as pretrained=smollm2-135m, is expected")
        self.decoder = load(pretrained, None if dtype in (None, "auto") else dtype, device or _device_of(pretrained))
        self.skip = _blocks(skip)
        self._plan = skip_plan(self.decoder, self.skip)
        self.tokenizer = self._tokenizer(tokenizer, add_bos_token)
        self.add_bos_token = add_bos_token
        self.max_length = _max_length(self.decoder.config, self.tokenizer, max_length)
        self.tokens = TOKENS[self.decoder.device.type] if tokens is None else require_whole("tokens", tokens, 1)
        self.batch_size = batch_size
        self._generated_at_once = _batch(batch_size, max_batch_size)
        self._prefix_token_id = prefix_token_id
        self._device = self.decoder.device
        self.answered: Callable[[Pair], Answer | None] = lambda pair: None
        self.keep: Callable[[Pair, Answer], None] = lambda pair, answer: None
        self.progress: Callable[[int, int], None] | None = None

    def _tokenizer(self, tokenizer: Any, add_bos_token: bool | None) -> Any:
        loaded = tokenizer is None or isinstance(tokenizer, (str, os.PathLike))
        if loaded:
            source = self.decoder.tokenizer_source if tokenizer is None else TokenizerSource(os.fspath(tokenizer))
            tokenizer = load_tokenizer(source, self.decoder.name)
        if len(tokenizer) > self.decoder.vocab_size:
            raise InputError(
                f"{self.decoder.name}: its tokenizer has {len(tokenizer)} tokens; the model knows"
                f" {self.decoder.vocab_size}"
            )
        if loaded and add_bos_token is not None and hasattr(tokenizer, "add_bos_token"):
            tokenizer.add_bos_token = add_bos_token
        return tokenizer

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> PyPruneLM:
        """lm-eval cuts its string at every comma, also where block indices stand: skip=10,11 and skip=[10,11]."""
        skip, additional_config = _SKIP.search(arg_string), _on_this_machine(additional_config)
        if skip is None:
            return super().create_from_arg_string(arg_string, additional_config)
        rest = arg_string[: skip.start()] + arg_string[skip.end() :]
        return super().create_from_arg_string(rest.lstrip(","), {**additional_config, "skip": skip[1]})

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> PyPruneLM:
        """As lm-eval's command line makes a model."""
        return super().create_from_arg_obj(arg_dict, _on_this_machine(additional_config))

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context: the argument, else the tokenizer's BOS, else its EOS."""
        if self._prefix_token_id is not None:
            return self._prefix_token_id
        return self.tokenizer.eos_token_id if self.tokenizer.bos_token_id is None else self.tokenizer.bos_token_id

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.name_or_path.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids, with the tokenizer's special tokens unless told otherwise or the text begins with one."""
        if add_special_tokens is None and has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        elif add_special_tokens is None:
            add_special_tokens = self.add_bos_token
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return self.tokenizer.encode(string, **options)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes beside its results."""
        return {
            "model_name": self.decoder.name,
            "model_num_parameters": self.decoder.parameters(),
            "model_dtype": str(self.decoder.dtype),
            "skip": self.skip if self.skip is None or isinstance(self.skip, (list, str)) else str(self.skip),
        }

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood, whether greedy decoding gives it) of each request's continuation behind its context."""
        return super().loglikelihood(requests, disable_tqdm or self.progress is not None)

    def _loglikelihood_tokens(
        self, requests: list[Pair], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """(log-likelihood, whether greedy decoding gives it) of each continuation.

        InputError for a continuation without tokens, or with more than the model reads.
        """
        for _text, context, continuation in requests:
            if not context or not 0 < len(continuation) <= self.max_length:
                raise InputError(
                    f"a request with {len(context)} tokens of context and {len(continuation)} to score; at least 1 and"
                    f" 1 to {self.max_length} (max_length) are accepted"
                )
        kept_answers = [self.answered(request) for request in requests]
        missing = [i for i, answer in enumerate(kept_answers) if answer is None]
        endings = [ending(requests[i][1], requests[i][2], self.max_length) for i in missing]
        done = len(requests) - len(missing)
        with tqdm(
            total=len(requests), initial=done, disable=disable_tqdm or self.progress is not None, desc="log-likelihoods"
        ) as bar:
            for place, answer in answers(self.decoder, endings, self._plan, self.tokens):
                request = requests[missing[place]]
                kept_answers[missing[place]] = answer
                self.keep(request, answer)
                if request[0] is not None:  # a window of a rolling request is kept as a whole
                    self.cache_hook.add_partial("loglikelihood", request[0], _pair(answer))
                bar.update()
                done += 1
                if self.progress is not None:
                    self.progress(done, len(requests))
        return [_pair(answer) for answer in kept_answers if answer is not None]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole text, cut into windows of up to `max_length` tokens, each token predicted
        once, as lm-eval cuts it."""
        windows: list[Pair] = []
        counts = []
        for (text,) in (request.args for request in requests):
            cut = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            cut = [make_disjoint_window(window) for window in cut]
            counts.append(len(cut))
            windows += [(None, context, continuation) for context, continuation in cut]
        scored = iter(self._loglikelihood_tokens(windows, disable_tqdm))
        totals = [sum(next(scored)[0] for _ in range(count)) for count in counts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What follows each text, up to a stop string; requests with the same arguments run together."""
        texts = [""] * len(requests)
        prompts = [self.tok_encode(request.args[0]) for request in requests]
        order = sorted(range(len(requests)), key=lambda i: (repr(requests[i].args[1]), -len(prompts[i])))
        with tqdm(total=len(requests), disable=disable_tqdm or self.progress is not None, desc="generation") as bar:
            for group in _runs(order, lambda i: repr(requests[i].args[1]), self._generated_at_once):
                continuations = self._continued([prompts[i] for i in group], requests[group[0]].args[1])
                for i, text in zip(group, continuations, strict=True):
                    texts[i] = text
                    self.cache_hook.add_partial("generate_until", requests[i].args, text)
                    bar.update()
        return texts

    def _continued(self, prompts: Sequence[list[int]], arguments: dict[str, Any]) -> list[str]:
        options = dict(normalize_gen_kwargs(arguments, MAX_NEW_TOKENS))
        until = handle_stop_sequences(options.pop("until", None), eos=self.tokenizer.decode(self.eot_token_id))
        new = int(options.pop("max_gen_toks"))
        if not 0 < new < self.max_length:
            raise InputError(f"max_gen_toks: {new} given; 1 to {self.max_length - 1} are accepted")
        # As lm-eval does, a prompt loses its first tokens where it leaves no room.
        prompts = [prompt[-(self.max_length - new) :] for prompt in prompts]
        stops = sorted({*self.decoder.eos_token_ids(), self.eot_token_id})
        engine = Engine(self.decoder, len(prompts), max(map(len, prompts)) + new)
        return continued(engine, self.tokenizer, prompts, until, sampling(options, new, stops), self.skip)


def _pair(answer: Answer) -> tuple[float, bool]:
    return answer.log_likelihood, answer.is_greedy


def _device_of(pretrained: Any) -> Any:
    """Where a model already is; else the CPU."""
    return getattr(pretrained, "device", "cpu")


def _blocks(skip: Any) -> Any:
    """Block indices as lm-eval's argument strings give them; anything else is the engine's to read."""
    if isinstance(skip, int) and not isinstance(skip, bool):
        return [skip]
    if not isinstance(skip, str):
        return skip
    parts = skip.strip("[]").replace("+", ",").split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise InputError(f"skip={skip}: block indices from 0, such as skip=10,11, are expected")
    return [int(part) for part in parts]


def _on_this_machine(config: dict[str, Any] | None) -> dict[str, Any]:
    """lm-eval's settings. Its command line says cuda:0 where --device is not given: without CUDA that is the CPU."""
    config = dict(config or {})
    if str(config.get("device")).startswith("cuda") and not torch.cuda.is_available():
        config["device"] = "cpu"
    return config


def _max_length(config: dict[str, Any], tokenizer: Any, requested: int | None) -> int:
    """The longest input: as requested, else the configuration's context."""
    return int(config["max_position_embeddings"]) if requested is None else require_whole("max_length", requested, 1)


def _batch(batch_size: int | str | None, limit: int | None) -> int:
    """How many texts are generated at once."""
    size = int(str(batch_size)) if str(batch_size).isdigit() else GENERATED_AT_ONCE
    return max(1, min(max(size, GENERATED_AT_ONCE), limit or MAX_BATCH, MAX_BATCH))


def _runs(order: Iterable[int], key: Callable[[int], str], limit: int) -> Iterable[list[int]]:
    """`order` cut where the key changes, and after `limit`."""
    run: list[int] = []
    for i in order:
        if run and (len(run) == limit or key(run[0]) != key(i)):
            yield run
            run = []
        run.append(i)
    if run:
        yield run
