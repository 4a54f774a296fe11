"""A LLaMA-style decoder as data: what every other package of pyprune works on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.models.blocks import FFN, MHA, Block, Change, Linear, named_tensors
from pyprune.models.checkpoints import save_checkpoint
from pyprune.models.gguf_writer import save_gguf
from pyprune.models.pages import Pages
from pyprune.models.pruning import Pruning
from pyprune.models.rope import Rope
from pyprune.models.streaming import StreamedBlocks
from pyprune.models.tensors import is_finite
from pyprune.models.tokenizers import TokenizerSource, load_tokenizer

__all__ = ["FFN", "MHA", "Block", "Decoder", "Linear", "Rope", "TokenizerSource"]


@dataclass(frozen=True)
class Decoder:
    """A decoder-only model: embedding, blocks, final norm, head, and what is needed to write it back.

    `config` is the Hugging Face configuration of the *original* model as a plain dict; a pruned decoder keeps it, so
    that original indices and sizes stay known. `pruning` is what was removed, None where nothing was; of what it added
    to biases the values may be unknown, since they are in the biases.
    """

    name: str
    config: dict[str, Any]
    embedding: Tensor
    blocks: Sequence[Block]
    norm: Tensor
    head: Linear
    tied: bool
    rope: Rope
    eps: float
    max_positions: int
    generation_config: dict[str, Any] | None = None
    tokenizer_source: TokenizerSource | None = None
    pruning: Pruning | None = None

    @property
    def hidden_size(self) -> int:
        return self.embedding.shape[1]

    @property
    def vocab_size(self) -> int:
        return self.embedding.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.dtype

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    @property
    def original_blocks(self) -> int:
        """Number of blocks of the unpruned model."""
        return int(self.config["num_hidden_layers"])

    def eos_token_ids(self) -> tuple[int, ...]:
        """Ids that end a sequence (generation config first, then config); empty when the model names none."""
        for source in (self.generation_config or {}, self.config):
            value = source.get("eos_token_id")
            if value is not None:
                return tuple(value) if isinstance(value, (list, tuple)) else (int(value),)
        return ()

    def pad_token_id(self) -> int:
        """The padding id: the model's own, else its first EOS, else 0; ids outside the vocabulary, as some
        configurations have, are passed over."""
        own = (source.get("pad_token_id") for source in (self.generation_config or {}, self.config))
        candidates = (*own, *self.eos_token_ids()[:1])
        return next((int(id) for id in candidates if id is not None and 0 <= int(id) < self.vocab_size), 0)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor once, with a name; a tied head is not repeated."""
        return named_tensors(self.embedding, self.blocks, self.norm, self.head, self.tied)

    def parameters(self) -> int:
        """Number of parameters, a tied head counted once (the paper's #Param)."""
        return sum(tensor.numel() for _, tensor in self.tensors())

    @property
    def streamed(self) -> bool:
        """Whether blocks are read from their file whenever they are run (`load(..., stream=True)`)."""
        return isinstance(self.blocks, StreamedBlocks)

    def sizes(self) -> Decoder:
        """The same decoder for counting: where blocks are read from a file one at a time, theirs have sizes only."""
        return replace(self, blocks=self.blocks.sizes) if isinstance(self.blocks, StreamedBlocks) else self

    def require_weights(self) -> None:
        """InputError where only the weights' sizes are known, as of an engine's decoder that has compressed them."""
        if self.embedding.is_meta:
            raise InputError(f"{self.name}: only the sizes of its weights are here; a loaded decoder is expected")

    def bytes_per_token(self) -> int:
        """Bytes of weights one decode step must read: all but the embedding table, of which one row is read; the LM
        head is included even where it is tied to the embedding. The KV cache is not part of it."""
        tensors = [t for name, t in self.tensors() if name != "embedding"]
        total = sum(t.numel() * t.element_size() for t in tensors)
        if self.tied:
            total += self.head.weight.numel() * self.head.weight.element_size()
        return total + self.embedding[0].numel() * self.embedding.element_size()

    def map(self, change: Change) -> Decoder:
        """The same decoder with `change` applied to every tensor (a tied head stays tied)."""
        embedding = change(self.embedding)
        head = Linear(embedding, self.head.bias) if self.tied else self.head.map(change)
        changed = replace(self, embedding=embedding, norm=change(self.norm), head=head)
        return changed.map_blocks(lambda block: block.map(change))

    def map_blocks(self, change: Callable[[Block], Block]) -> Decoder:
        """The same decoder with every block changed: now, or where blocks are streamed whenever one is read."""
        if isinstance(self.blocks, StreamedBlocks):
            return replace(self, blocks=self.blocks.map(change))
        return replace(self, blocks=tuple(map(change, self.blocks)))

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Decoder:
        """The same decoder in another dtype or on another device; tensors already there are shared.

        On a GPU the rows of a matrix whose width is no multiple of 16 bytes lie further apart than they are long, with
        zeros between them, so that each starts on 128 bytes; shapes and values are the same. Only placing weights there
        does that: what an `Engine` is given it uses as it is, and `decoder.map(torch.Tensor.contiguous)` is the decoder
        with packed rows, to measure what they cost.
        InputError naming the first tensor that float16 cannot hold, when it was finite before (of streamed blocks when
        they are read), and for a device that is to get weights of which only the sizes are here.
        """
        if device is not None and torch.device(device).type != "meta":
            self.require_weights()
        pages = Pages(together=not self.streamed)

        def move(tensor: Tensor, block: Block | None = None) -> Tensor:
            if tensor.is_meta:  # of streamed blocks the sizes, wherever the blocks are read to
                return torch.empty_like(tensor, dtype=dtype)
            moved = pages.move(tensor, dtype, device)
            # Of the three dtypes only float16 has less range than another; where nothing narrows, nothing is checked.
            if moved.dtype == torch.float16 != tensor.dtype and not is_finite(moved) and is_finite(tensor):
                raise InputError(
                    f"{self.name}: tensor {self._name_of(tensor, block)} does not fit {dtype}: infinite after the"
                    " change; use bfloat16 or float32"
                )
            return moved

        outside = replace(self, blocks=()).map(move)
        blocks = self.map_blocks(lambda block: block.map(lambda tensor: move(tensor, block))).blocks
        return replace(outside, blocks=blocks, rope=self.rope.to(device))

    def _name_of(self, tensor: Tensor, block: Block | None) -> str:
        """The name of a tensor of the block, which may have been read for this alone, or of none."""
        if block is None:
            names, prefix = replace(self, blocks=()).tensors(), ""
        else:
            place = [each.index for each in self.sizes().blocks].index(block.index)
            names, prefix = block.tensors(), f"blocks.{place}."
        return prefix + next(name for name, candidate in names if candidate is tensor)

    def tokenizer(self) -> Any:
        """The model's tokenizer (a transformers tokenizer). InputError when the model has none."""
        return load_tokenizer(self.tokenizer_source, self.name)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write safetensors, config, generation config, tokenizer files and `pruning.json`; whole or not at all."""
        save_checkpoint(self, directory)

    def save_gguf(
        self, path: str | os.PathLike[str], dtype: torch.dtype | str | None = None, tokenizer: bool = True
    ) -> None:
        """Write a GGUF file for llama.cpp, matrices in `dtype` (None: as they are); whole or not at all."""
        save_gguf(self, path, dtype, tokenizer)
