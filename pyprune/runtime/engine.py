"""The block-skipping engine: one resident model, any blocks or halves left out at run time.

Sequences of a batch are independent: sequence b fills cache rows 0 .. length[b]-1 without gaps, whatever padding it
came with, and its next token goes to row length[b]. So the same kernels serve ragged batches, and no padding is ever
attended.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from pyprune import ops
from pyprune.errors import InputError
from pyprune.models.decoder import MHA, Decoder
from pyprune.runtime.graph import StepGraph, record_cuda_graph
from pyprune.runtime.inputs import check_ids, without_padding
from pyprune.runtime.sampling import Sampling
from pyprune.runtime.sequence import embed
from pyprune.runtime.skip import Plan, Skip, plan

MAX_BATCH = 64
MAX_GRAPHS = 8  # recorded decode steps kept on a GPU, one for each batch size and mask
FEW_TOKENS = 16  # up to this many query tokens attend through `decode_attention`; beyond it torch's SDPA is faster


class Engine:
    """Prefill and decode with a static KV cache.

    decoder: the model; its weights are used in place. max_batch: sequences at a time, 1 to 64. max_len: cache rows a
    sequence may use, prompt and new tokens together (default: the model's context, at most 4096). The cache has
    Hugging Face's layout, `[max_batch, kv_heads, max_len, head_dim]` a block, in the weights' dtype.

    Raises InputError for sizes out of range, and for a max_len beyond the length up to which the model's RoPE holds.
    """

    def __init__(self, decoder: Decoder, max_batch: int = 1, max_len: int | None = None) -> None:
        if not 1 <= max_batch <= MAX_BATCH:
            raise InputError(f"max_batch: {max_batch} given; 1 to {MAX_BATCH} is accepted")
        if max_len is None:
            max_len = min(decoder.max_positions, 4096)
        if max_len < 1:
            raise InputError(f"max_len: {max_len} given; 1 or more is accepted")
        if decoder.rope.limit is not None and max_len > decoder.rope.limit:
            raise InputError(
                f"max_len: {max_len} given; up to {decoder.rope.limit} is accepted, because {decoder.rope.kind} RoPE "
                "changes its frequencies beyond that length"
            )
        self.decoder = decoder
        self.max_batch = max_batch
        self.max_len = max_len
        self.cos, self.sin = decoder.rope.tables(max_len)
        self._caches = [None if b.mha is None else self._new_cache(b.mha) for b in decoder.blocks]
        self._plan = plan(decoder)
        self._record = record_cuda_graph if decoder.device.type == "cuda" and ops.gpu.recordable() else None
        self._graphs: dict[tuple[int, Plan], StepGraph] = {}
        self._forget()

    def _forget(self) -> None:
        self._lengths = torch.zeros(0, dtype=torch.int64, device=self.decoder.device)
        self._longest = 0  # the greatest of them, on the host: a decode step never waits for the device

    def _new_cache(self, mha: MHA) -> tuple[Tensor, Tensor]:
        # Memory that no sequence reaches is never touched, so the operating system never provides it.
        shape = (self.max_batch, mha.kv_heads, self.max_len, mha.head_dim)
        options = {"dtype": self.decoder.dtype, "device": self.decoder.device}
        return torch.empty(shape, **options), torch.empty(shape, **options)

    @property
    def lengths(self) -> Tensor:
        """Tokens in the cache for each sequence of the current batch, `[B]`."""
        return self._lengths.clone()

    @torch.inference_mode()
    def prefill(self, input_ids: Tensor, attention_mask: Tensor | None = None, skip: Skip = None) -> Tensor:
        """Start a batch of sequences: fill the cache from `input_ids [B, T]` and give each next token's logits.

        Gives `[B, V]`, float32. attention_mask `[B, T]`: 1 for tokens, 0 for padding on the left or the right. skip:
        blocks to leave out, fixed until the next prefill (a cache written under one mask is of no use under another).
        InputError for ids outside the vocabulary, an empty prompt, a batch or length beyond the engine's.
        """
        ids, lengths = without_padding(input_ids, attention_mask)
        batch, tokens = ids.shape
        self._check(ids, tokens)
        current = plan(self.decoder, skip)
        self._forget()  # if the rest fails, there is no batch to go on with
        self._plan = current
        positions = torch.arange(tokens, device=self.decoder.device).expand(batch, tokens).contiguous()
        x = self._blocks(embed(self.decoder, ids), positions)
        self._lengths, self._longest = lengths.to(self.decoder.device), tokens
        return self._logits(x[torch.arange(batch, device=x.device), self._lengths - 1])

    @torch.inference_mode()
    def decode(self, tokens: Tensor) -> Tensor:
        """Append one token `[B]` to each sequence of the current batch and give the next logits `[B, V]`, float32."""
        if tokens.shape != self._lengths.shape or not len(tokens):
            raise InputError(
                f"tokens: shape {list(tokens.shape)} given; [{len(self._lengths)}], as in prefill, is accepted"
            )
        check_ids(tokens.unsqueeze(1), self.decoder.vocab_size)
        return self._advance(tokens)

    @torch.inference_mode()
    def _advance(self, tokens: Tensor) -> Tensor:
        if self._longest >= self.max_len:
            raise InputError(f"the cache is full: {self.max_len} tokens (max_len)")
        if self._record is None:
            logits = self._step(tokens, self._lengths)
        else:
            logits = self._graph(tokens)(tokens, self._lengths)
        self._lengths = self._lengths + 1
        self._longest += 1
        return logits

    def _step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        x = self._blocks(embed(self.decoder, tokens.unsqueeze(1)), positions.unsqueeze(1))
        return self._logits(x[:, 0])

    def _graph(self, tokens: Tensor) -> StepGraph:
        """The recorded step for this batch size and mask, recorded when first needed; the last few are kept."""
        key = (len(tokens), self._plan)
        if key not in self._graphs:
            while len(self._graphs) >= MAX_GRAPHS:
                del self._graphs[next(iter(self._graphs))]
            tokens = tokens.to(self.decoder.device)
            self._graphs[key] = StepGraph(self._step, tokens, self._lengths, self._record)
        return self._graphs[key]

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        max_new_tokens: int = 32,
        skip: Skip = None,
        eos_token_id: int | Iterable[int] | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """New tokens only, int64 `[B, new]`, for prompts `input_ids [B, T]` (ids, padding and skip as in `prefill`).

        Without `eos_token_id` exactly `max_new_tokens`; with it a sequence that has ended is filled with padding, and
        generation stops when all have. temperature 0 is greedy; `seed` makes sampling repeatable.
        InputError, before any work, when prompt and new tokens exceed `max_len`.
        """
        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens: {max_new_tokens} given; 1 or more is accepted")
        sampling = Sampling(temperature, top_k, top_p)
        generator = None
        if seed is not None:
            generator = torch.Generator(self.decoder.device).manual_seed(seed)
        stops = _stop_ids(eos_token_id, self.decoder.device)
        ids, _ = without_padding(input_ids, attention_mask)
        self._check(ids, ids.shape[1] + max_new_tokens - 1)

        logits = self.prefill(input_ids, attention_mask, skip)
        out = torch.full((len(logits), max_new_tokens), self.decoder.pad_token_id(), device=logits.device)
        done = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        for step in range(max_new_tokens):
            token = sampling.choose(logits, generator)
            out[:, step] = torch.where(done, out[:, step], token)
            if stops is not None:
                done |= torch.isin(token, stops)
                if bool(done.all()):
                    return out[:, : step + 1]
            if step + 1 < max_new_tokens:
                logits = self._advance(token)
        return out

    def _check(self, ids: Tensor, length: int) -> None:
        if len(ids) > self.max_batch:
            raise InputError(f"input_ids: a batch of {len(ids)} given; up to {self.max_batch} (max_batch) is accepted")
        if length > self.max_len:
            raise InputError(
                f"{length} tokens needed for prompt and new tokens; up to {self.max_len} (max_len) are accepted"
            )
        check_ids(ids, self.decoder.vocab_size)

    def _blocks(self, x: Tensor, positions: Tensor) -> Tensor:
        """x `[B, T, hidden]` through every block that runs, appending to the caches at `positions [B, T]`."""
        current: Plan = self._plan
        eps = self.decoder.eps
        for block, cache, mha_runs, ffn_runs in zip(
            self.decoder.blocks, self._caches, current.mha, current.ffn, strict=True
        ):
            if mha_runs:
                mha, (keys, values) = block.mha, cache
                q = ops.norm_qkv_rope(
                    x, mha.norm, eps, mha.q.weight, mha.k.weight, mha.v.weight, mha.q.bias, mha.k.bias, mha.v.bias,
                    mha.q_norm, mha.k_norm, self.cos, self.sin, positions, keys, values,
                )  # fmt: skip
                context = _attend(q, keys, values, positions)
                x = ops.linear_residual(context.flatten(2), mha.o.weight, mha.o.bias, x)
            if ffn_runs:
                ffn = block.ffn
                a = ops.norm_gate_up(x, ffn.norm, eps, ffn.gate.weight, ffn.up.weight, ffn.gate.bias, ffn.up.bias)
                x = ops.linear_residual(a, ffn.down.weight, ffn.down.bias, x)
        return x

    def _logits(self, x: Tensor) -> Tensor:
        head = self.decoder.head
        return ops.norm_head(x, self.decoder.norm, self.decoder.eps, head.weight, head.bias)


def _attend(q: Tensor, keys: Tensor, values: Tensor, positions: Tensor) -> Tensor:
    """Attention of q `[B, T, heads, head_dim]` over the caches, `[B, T, heads, head_dim]`."""
    batch, tokens, heads, head_dim = q.shape
    if tokens <= FEW_TOKENS:
        return ops.decode_attention(q, keys, values, positions, head_dim**-0.5)
    # A longer stretch only comes from prefill, where positions are 0 .. T-1: plain causal attention.
    k, v = keys[:batch, :, :tokens].to(q.dtype), values[:batch, :, :tokens].to(q.dtype)
    context = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, is_causal=True, enable_gqa=heads != keys.shape[1])
    return context.transpose(1, 2).contiguous()


def _stop_ids(eos_token_id: int | Iterable[int] | None, device: torch.device) -> Tensor | None:
    if eos_token_id is None:
        return None
    values = [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id)
    return torch.tensor(values, dtype=torch.int64, device=device) if values else None
