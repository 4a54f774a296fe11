"""Hugging Face transformers: eager with its default cache, and compiled with a static one. Both share our weights."""

from __future__ import annotations

import contextlib
import shutil
import signal
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bench.peers.peer import Absent, Decoding, Peer
from pyprune.models.decoder import Decoder
from pyprune.models.tensors import one_line
from pyprune.models.transformers_model import to_transformers
from pyprune.runtime.huggingface.layers import CACHE

COMPILE_SECONDS = 180


class HuggingFace(Peer):
    """sdpa attention, not compiled, a dynamic cache made anew for every batch of prompts."""

    name = "HF eager"

    def open(self, decoder: Decoder, batch: int, length: int) -> Decoding:
        from transformers import DynamicCache

        model = to_transformers(decoder, attn_implementation="sdpa")
        return HuggingFaceDecoding(model, model, lambda: DynamicCache(config=model.config))


class HuggingFaceCompiled(Peer):
    """sdpa attention, a static cache, the decode step compiled by inductor for the batch size at hand.

    mode: `torch.compile`'s. seconds: how long compiling may take (default: COMPILE_SECONDS).
    """

    name = "HF compiled"

    def __init__(self, mode: str | None = None, seconds: int | None = None) -> None:
        self._mode, self._seconds = mode, COMPILE_SECONDS if seconds is None else seconds

    def absent_reason(self) -> str | None:
        return None if shutil.which("g++") or shutil.which("clang++") else "inductor needs a C++ compiler"

    def open(self, decoder: Decoder, batch: int, length: int) -> Decoding:
        from transformers import StaticCache

        model = to_transformers(decoder, attn_implementation="sdpa")
        cache = StaticCache(config=model.config, max_cache_len=length)
        torch._dynamo.reset()  # else the graphs of other batch sizes count against its limit
        step = torch.compile(model, fullgraph=True, dynamic=False, mode=self._mode)

        def emptied() -> Any:
            cache.reset()
            return cache

        decoding = HuggingFaceDecoding(model, step, emptied)
        try:
            with at_most(self._seconds):
                decoding.prefill(torch.zeros(batch, 1, dtype=torch.int64, device=decoder.device))
                decoding.decode(2)
        except TimeoutError:
            raise Absent(f"compiling took more than {self._seconds} s") from None
        except Exception as error:  # each stage of torch.compile has exceptions of its own
            raise Absent(f"torch.compile failed: {one_line(error)[:120]}") from error
        return decoding


class HuggingFaceDecoding(Decoding):
    """The model's forward and an argmax for each step: `generate` without its bookkeeping, to the peer's advantage."""

    def __init__(self, model: Any, step: Callable[..., Any], new_cache: Callable[[], Any]) -> None:
        self._model, self._step, self._new_cache = model, step, new_cache

    @torch.inference_mode()
    def prefill(self, prompts: Tensor) -> None:
        self._cache = self._new_cache()
        self._position = torch.full((1, 1), prompts.shape[1], device=prompts.device)
        out = self._model(prompts, **{CACHE: self._cache}, use_cache=True, logits_to_keep=1)
        self._tokens = out.logits[:, -1].argmax(-1)

    @torch.inference_mode()
    def decode(self, steps: int) -> Tensor:
        chosen = []
        for _ in range(steps):
            out = self._step(self._tokens[:, None], position_ids=self._position, **{CACHE: self._cache}, use_cache=True)
            self._tokens = out.logits[:, -1].argmax(-1)
            self._position = self._position + 1  # on the device: a step waits for nothing from the host
            chosen.append(self._tokens)
        return torch.stack(chosen, 1)


@contextlib.contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raise TimeoutError inside when it takes longer (in the main thread, at the next Python instruction)."""

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
