"""pyprune's own engine, through the same door as its peers."""

from __future__ import annotations

from itertools import islice

import torch
from torch import Tensor

from bench.peers.peer import Absent, Decoding, Peer
from pyprune import Engine
from pyprune.models.decoder import Decoder
from pyprune.ops import native
from pyprune.runtime.skip import Skip


class PyPrune(Peer):
    """pyprune's engine; its weights stored as `weight_format` says."""

    def __init__(self, weight_format: str | None = None) -> None:
        self._weight_format = weight_format
        self.name = "pyprune, compressed" if weight_format else "pyprune"

    def open(self, decoder: Decoder, batch: int, length: int, skip: Skip = None) -> Decoding:
        if self._weight_format and decoder.dtype != torch.bfloat16:
            raise Absent(f"{str(decoder.dtype).removeprefix('torch.')} weights are not compressed, bfloat16 ones are")
        engine = Engine(decoder, max_batch=batch, max_len=length, weight_format=self._weight_format)
        return EngineDecoding(engine, skip)

    def describe(self) -> dict[str, str]:
        return {"instruction_set": str(native.selected_isa())}


class EngineDecoding(Decoding):
    """`Engine.stream`: its first token from the prefill, the others a step each."""

    def __init__(self, engine: Engine, skip: Skip = None) -> None:
        self._engine, self._skip = engine, skip
        self.bytes_per_token = engine.bytes_per_token()

    def prefill(self, prompts: Tensor) -> None:
        new = self._engine.max_len - prompts.shape[1] + 1
        self._tokens = self._engine.stream(prompts, max_new_tokens=new, skip=self._skip)
        next(self._tokens)

    def decode(self, steps: int) -> Tensor:
        return torch.stack(list(islice(self._tokens, steps)), 1)
