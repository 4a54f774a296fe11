"""A LLaMA-style decoder as data: what every other room of pyprune works on.

Nothing here computes. A block is two halves that each add to the residual stream,

    x = x + MHA(RMSNorm(x));   x = x + FFN(RMSNorm(x)),

and either half can be absent. Weights are in torch's layout, `[out_features, in_features]`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.models.pages import Pages
from pyprune.models.tensors import is_finite

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Linear:
    """A projection: `weight [out, in]` and, where the model has one, `bias [out]`."""

    weight: Tensor
    bias: Tensor | None = None

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield "weight", self.weight
        if self.bias is not None:
            yield "bias", self.bias

    def map(self, change: Change) -> Linear:
        weight, bias = change(self.weight), None if self.bias is None else change(self.bias)
        return self if weight is self.weight and bias is self.bias else Linear(weight, bias)


@dataclass(frozen=True)
class MHA:
    """The attention half: `norm [hidden]`, `q [heads*head_dim, hidden]`, `k` and `v [kv_heads*head_dim, hidden]`,
    `o [hidden, heads*head_dim]`; `q_norm` and `k_norm [head_dim]` where the family has them.

    `window`: how many positions a query sees, its own among them: p sees p-window+1 .. p. That is `sliding_window` in
    transformers (`masking_utils.sliding_window_overlay`: key > query - window). 0: all up to its own.
    """

    norm: Tensor
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    heads: int
    kv_heads: int
    head_dim: int
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    window: int = 0

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.heads // self.kv_heads

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield "norm", self.norm
        for name in ("q", "k", "v", "o"):
            for part, tensor in getattr(self, name).tensors():
                yield f"{name}.{part}", tensor
        for name in ("q_norm", "k_norm"):
            if getattr(self, name) is not None:
                yield name, getattr(self, name)

    def map(self, change: Change) -> MHA:
        norms = [norm if norm is None else change(norm) for norm in (self.norm, self.q_norm, self.k_norm)]
        q, k, v, o = (linear.map(change) for linear in (self.q, self.k, self.v, self.o))
        return replace(self, norm=norms[0], q=q, k=k, v=v, o=o, q_norm=norms[1], k_norm=norms[2])


@dataclass(frozen=True)
class FFN:
    """The feed-forward half: `norm [hidden]`, `gate` and `up [width, hidden]`, `down [hidden, width]`, SiLU."""

    norm: Tensor
    gate: Linear
    up: Linear
    down: Linear

    @property
    def width(self) -> int:
        return self.gate.weight.shape[0]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield "norm", self.norm
        for name in ("gate", "up", "down"):
            for part, tensor in getattr(self, name).tensors():
                yield f"{name}.{part}", tensor

    def map(self, change: Change) -> FFN:
        return FFN(change(self.norm), self.gate.map(change), self.up.map(change), self.down.map(change))


@dataclass(frozen=True)
class Block:
    """One Transformer block. `index` is its place in the original, unpruned model."""

    index: int
    mha: MHA | None
    ffn: FFN | None

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name in ("mha", "ffn"):
            half = getattr(self, name)
            if half is not None:
                for part, tensor in half.tensors():
                    yield f"{name}.{part}", tensor

    def map(self, change: Change) -> Block:
        """The same block with `change` applied to every tensor."""
        mha, ffn = (half if half is None else half.map(change) for half in (self.mha, self.ffn))
        return Block(self.index, mha, ffn)


@dataclass(frozen=True)
class Rope:
    """Rotary embedding (RoFormer; the half-split form of Llama).

    `inv_freq [head_dim/2]` float32; cosine and sine are multiplied by `scaling`. `limit` is the length up to which
    these frequencies hold, None when they hold everywhere. Longer sequences have those of LongRoPE's long context,
    `long [head_dim/2]`, or where that is None those of dynamic NTK scaling, from `theta` and `factor`.
    """

    inv_freq: Tensor
    scaling: float = 1.0
    kind: str = "default"
    limit: int | None = None
    long: Tensor | None = None
    theta: float = 10000.0
    factor: float = 1.0

    def tables(self, length: int, prompt: int = 0) -> tuple[Tensor, Tensor]:
        """Cosine and sine, each `[length, head_dim/2]` float32, for positions 0 .. length-1 of one sequence.

        A token keeps the frequencies of the length at which it was computed: the prompt's, for its first `prompt`
        tokens; for a later one at p, decoded on its own, those of length p+1. So does transformers, in a model that has
        run nothing longer before (`modeling_rope_utils.dynamic_rope_update`): keys in the cache stay as they are.
        """
        positions = torch.arange(length, device=self.inv_freq.device)
        angles = torch.outer(positions.to(torch.float32), self.inv_freq)
        if self.limit is not None and max(length, prompt) > self.limit:
            computed_at = (positions + 1).clamp(min=prompt)
            beyond = computed_at > self.limit
            angles[beyond] = positions[beyond, None].to(torch.float32) * self._frequencies(computed_at[beyond])
        return angles.cos() * self.scaling, angles.sin() * self.scaling

    def _frequencies(self, lengths: Tensor) -> Tensor:
        """The frequencies at `lengths [N]`, all beyond the limit: `[N or 1, head_dim/2]` float32.

        Dynamic NTK scaling: theta grows by (factor*length/limit - (factor-1))^(D/(D-2)).
        """
        if self.long is not None:
            return self.long.unsqueeze(0)
        dim = 2 * len(self.inv_freq)
        growth = self.factor * lengths / self.limit - (self.factor - 1)
        theta = self.theta * growth ** (dim / (dim - 2))
        return 1.0 / theta[:, None] ** (torch.arange(0, dim, 2, device=lengths.device).to(torch.float32) / dim)

    def to(self, device: torch.device | str | None) -> Rope:
        """The same rotation with its frequencies on another device."""
        long = None if self.long is None else self.long.to(device=device)
        return replace(self, inv_freq=self.inv_freq.to(device=device), long=long)


@dataclass(frozen=True)
class TokenizerSource:
    """Where a model's tokenizer comes from: a directory (or hub name), or a GGUF file; loaded when first needed."""

    path: str
    gguf_file: str | None = None


@dataclass(frozen=True)
class Decoder:
    """A decoder-only model: embedding, blocks, final norm, head, and what is needed to write it back.

    `config` is the Hugging Face configuration of the *original* model as a plain dict; a pruned decoder keeps it, so
    that original indices and sizes stay known. `pruning` is the record of what was removed (`Pruning` as JSON), and
    `compensation` what it added to biases, where that is known apart from them (`compensation.safetensors`).
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
    pruning: dict[str, Any] | None = None
    compensation: Mapping[str, Tensor] = field(default_factory=dict)

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
        """The padding id: the model's own, else its first EOS, else 0."""
        for source in (self.generation_config or {}, self.config):
            if source.get("pad_token_id") is not None:
                return int(source["pad_token_id"])
        return (self.eos_token_ids() or (0,))[0]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor once, with a name; a tied head is not repeated."""
        yield "embedding", self.embedding
        for position, block in enumerate(self.blocks):
            for name, tensor in block.tensors():
                yield f"blocks.{position}.{name}", tensor
        yield "norm", self.norm
        for name, tensor in self.head.tensors():
            if not (self.tied and name == "weight"):
                yield f"head.{name}", tensor

    def parameters(self) -> int:
        """Number of parameters, a tied head counted once (the paper's #Param)."""
        return sum(tensor.numel() for _, tensor in self.tensors())

    @property
    def streamed(self) -> bool:
        """Whether blocks are read from their file whenever they are run (`load(..., stream=True)`)."""
        return hasattr(self.blocks, "sizes")

    def sizes(self) -> Decoder:
        """The same decoder for counting: where blocks are read from a file one at a time, theirs have sizes only."""
        return replace(self, blocks=getattr(self.blocks, "sizes", self.blocks))

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
        streamed = getattr(self.blocks, "map", None)
        return replace(self, blocks=streamed(change) if streamed else tuple(map(change, self.blocks)))

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Decoder:
        """The same decoder in another dtype or on another device; tensors already there are shared.

        On a GPU the rows of a matrix whose width is no multiple of 16 bytes lie further apart than they are long, with
        zeros between them, so that each starts on 128 bytes; shapes and values are the same. Only placing weights there
        does that: what an `Engine` is given it uses as it is, and `decoder.map(torch.Tensor.contiguous)` is the decoder
        with packed rows, to measure what they cost.
        InputError naming the first tensor that float16 cannot hold, when it was finite before.
        """

        pages = Pages(together=not self.streamed)

        def move(tensor: Tensor) -> Tensor:
            moved = pages.move(tensor, dtype, device)
            # Of the three dtypes only float16 has less range than another; where nothing narrows, nothing is checked.
            if moved.dtype == torch.float16 != tensor.dtype and not is_finite(moved) and is_finite(tensor):
                part = next(part for part, one in self.tensors() if one is tensor)
                raise InputError(
                    f"{self.name}: tensor {part} does not fit {dtype}: infinite after the change; use bfloat16 or"
                    " float32"
                )
            return moved

        moved = self.map(move)
        return replace(moved, rope=self.rope.to(device))

    def tokenizer(self) -> Any:
        """The model's tokenizer (a transformers tokenizer). InputError when the model has none."""
        from pyprune.models.tokenizers import load_tokenizer

        return load_tokenizer(self)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write safetensors, config, generation config, tokenizer files and `pruning.json`; whole or not at all."""
        from pyprune.models.checkpoints import save_checkpoint

        save_checkpoint(self, directory)

    def save_gguf(
        self, path: str | os.PathLike[str], dtype: torch.dtype | str | None = None, tokenizer: bool = True
    ) -> None:
        """Write a GGUF file for llama.cpp, matrices in `dtype` (None: as they are); whole or not at all."""
        from pyprune.models.gguf_writer import save_gguf

        save_gguf(self, path, dtype, tokenizer)
