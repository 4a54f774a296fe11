"""The block-skipping engine: one resident model, any blocks or sublayers left out at run time.

Sequences of a batch are independent: sequence b fills cache rows 0 .. length[b]-1 without gaps, whatever padding it
came with, and its next token goes to row length[b]. So the same kernels serve ragged batches, and no padding is ever
attended.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from os import PathLike
from typing import Unpack

import torch
from torch import Tensor

from pyprune import ops
from pyprune.checks import require_whole
from pyprune.errors import InputError
from pyprune.models.decoder import MHA, Decoder
from pyprune.runtime.attention import Attention
from pyprune.runtime.chunks import Chunk, chunks
from pyprune.runtime.footprint import require_engine
from pyprune.runtime.graph import StepGraph, record_cuda_graph
from pyprune.runtime.inputs import Prompts, check_ids, prompts, require_tensor
from pyprune.runtime.rows import SKINNY_ROWS
from pyprune.runtime.sampling import choose, log_probability, uniforms
from pyprune.runtime.sampling_params import SamplingOptions, SamplingParams, sampling_params
from pyprune.runtime.sequence import activation_dtype, embed, rotated_queries
from pyprune.runtime.skip import Skip, SkipPlan, skip_plan
from pyprune.runtime.step import FusedStep
from pyprune.runtime.stopping import stop_ids, token_limits
from pyprune.runtime.weight_formats import converted, require_format, sizes_of

MAX_BATCH = 256
DEFAULT_LENGTH = 4096  # unless the model's context is shorter
PREFILL_CHUNK = 512
MAX_GRAPHS = 8  # recorded decode steps kept on a GPU, one for each batch size and mask (device masks share one)


class Engine:
    """Prefill and decode with a static KV cache, leaving out the blocks and sublayers that `skip` names.

    decoder: the model; its weights are used in place. max_batch: sequences at a time, 1 to 256. max_len: cache rows a
    sequence may use, prompt and new tokens together (default: the model's context, at most 4096; beyond the context it
    runs on as transformers does). prefill_chunk: prompt tokens, over the whole batch, that run at once; it bounds the
    memory of prefill. The cache has Hugging Face's layout, `[max_batch, kv_heads, max_len, head_dim]` a block, in the
    weights' dtype.

    weight_format: how the weights are stored. None, or "bf16" for a decoder in bfloat16: as they are.
    "bf16-lossless12": bfloat16 weights on a CPU in 12 bits each, without loss: results have the same bits, and up to
    four sequences decode faster, for fewer bytes are read (docs/reference/generation.md). The engine then has weights
    of its own, and its `decoder` sizes only; the given decoder's memory is free once nobody else holds it. compress:
    the old name, True for "bf16-lossless12".

    `skip` is known to the host (block indices, a `Pruning`, {"blocks", "mha", "ffn"}: what is left out is not even
    called) or a device mask (a bool tensor `[blocks, 2]`, column 0 MHA and 1 FFN, True where left out: the operators
    read it, the host never does, so that on a GPU one recorded step serves all of them without waiting).

    The KV rule: a block's cache row exists only for tokens computed with that block's MHA running. So in the middle of
    a sequence FFNs may come and go and an MHA may be switched off, but an MHA that any cached token went without
    may not be switched on again; a device mask, which the host does not know, holds from one prefill to the next.

    Raises InputError for anything but a Decoder, for sizes out of range, for more cache and workspace (and converted
    weights) at full length than there is memory, and for a weight format that these weights cannot have.
    """

    def __init__(
        self,
        decoder: Decoder,
        max_batch: int = 1,
        max_len: int | None = None,
        prefill_chunk: int = PREFILL_CHUNK,
        weight_format: str | None = None,
        compress: bool | None = None,
    ) -> None:
        if not isinstance(decoder, Decoder):
            what = repr(decoder) if isinstance(decoder, (str, PathLike)) else f"a {type(decoder).__name__}"
            raise InputError(f"decoder: {what} given; a Decoder, as pyprune.load gives it, is accepted")
        max_batch = require_whole("max_batch", max_batch, 1, MAX_BATCH)
        if max_len is None:
            max_len = min(decoder.max_positions, DEFAULT_LENGTH)
        max_len = require_whole("max_len", max_len, 1)
        prefill_chunk = require_whole("prefill_chunk", prefill_chunk, 1)
        decoder.require_weights()
        if decoder.streamed:
            raise InputError(f"{decoder.name}: its blocks are streamed; a decoder loaded without stream is accepted")
        stored_as = require_format(decoder, weight_format, compress)
        require_engine(decoder, max_batch, max_len, prefill_chunk, stored_as)
        self.decoder = sizes_of(decoder) if stored_as else decoder
        self._running = converted(decoder, stored_as) if stored_as else decoder
        self._device = decoder.device
        self.max_batch = max_batch
        self.max_len = max_len
        self.prefill_chunk = prefill_chunk
        # Where the frequencies change with the length, each row has those of the length at which it is decoded.
        self.cos, self.sin = decoder.rope.tables(max_len)
        self._caches = [None if b.mha is None else self._new_cache(b.mha) for b in decoder.blocks]
        self._fused_steps = self._new_fused_steps() if decoder.device.type == "cpu" else []
        self._skip_plan = skip_plan(decoder)
        # Where a device mask lies while its batch runs: recorded steps read it there.
        self._mask_buffer = torch.zeros(2 * len(decoder.blocks), dtype=torch.bool, device=decoder.device)
        self._record = (
            record_cuda_graph
            if decoder.device.type == "cuda" and ops.gpu.runs_kernels(decoder.dtype, decoder.device)
            else None
        )
        self._graphs: dict[tuple[int, SkipPlan, bool], StepGraph] = {}
        self._forget()

    def _forget(self) -> None:
        self._lengths = torch.zeros(0, dtype=torch.int64, device=self._device)
        # The greatest of them, on the host: a decode step never waits for the device. None: not known since a stream.
        self._longest: int | None = 0
        self._stream: object | None = None  # the running stream, which nothing else may disturb

    def _new_cache(self, mha: MHA) -> tuple[Tensor, Tensor]:
        # Memory that no sequence reaches is never touched, so the operating system never provides it.
        shape = (self.max_batch, mha.kv_heads, self.max_len, mha.head_dim)
        dtype, device = self.decoder.dtype, self._device
        return torch.empty(shape, dtype=dtype, device=device), torch.empty(shape, dtype=dtype, device=device)

    def _new_fused_steps(self) -> list[FusedStep]:
        """A step for each SKINNY_ROWS sequences, the most that one takes: the weights are read once for them. So many
        rows are bound by arithmetic anyway, and in such parts a sequence has the same bits as alone."""
        return [
            FusedStep(self._running, [_some(pair, first) for pair in self._caches], self.cos, self.sin)
            for first in range(0, self.max_batch, SKINNY_ROWS)
        ]

    @property
    def lengths(self) -> Tensor:
        """Tokens in the cache for each sequence of the current batch, `[B]`."""
        return self._lengths.clone()

    def bytes_per_token(self) -> int:
        """Bytes of weights that one decode step reads with nothing left out, as `Decoder.bytes_per_token` counts them:
        in the format in which the engine stores them."""
        return self._running.bytes_per_token()

    def prefill(self, input_ids: Tensor, attention_mask: Tensor | None = None, skip: Skip = None) -> Tensor:
        """Start a batch of sequences: fill the cache from `input_ids [B, T]` and give each next token's logits.

        Gives `[B, V]`, float32. attention_mask `[B, T]`: 1 for tokens, 0 for padding on the left or the right. skip:
        what to leave out, known to the host or a device mask (see the class).
        InputError for ids outside the vocabulary, an empty prompt, a batch or length beyond the engine's.
        """
        checked = prompts(input_ids, attention_mask, self.decoder.vocab_size)
        self._check(checked.lengths)
        return self._start(checked, skip_plan(self._running, skip))

    @torch.inference_mode()
    def _start(self, checked: Prompts, plan: SkipPlan) -> Tensor:
        self._forget()  # if the rest fails, there is no batch to go on with
        if plan.device_mask is not None:
            plan = replace(plan, device_mask=self._mask_buffer.copy_(plan.device_mask))
        self._skip_plan = plan
        logits = self._logits(self._last_states(checked))
        self._lengths = torch.tensor(checked.lengths, device=logits.device)
        self._longest = max(checked.lengths)
        return logits

    @torch.inference_mode()
    def decode(self, tokens: Tensor, skip: Skip = None) -> Tensor:
        """Append one token `[B]` to each sequence of the current batch and give the next logits `[B, V]`, float32.

        skip: what to leave out from this token on; None keeps what was left out before ([] leaves out nothing).
        InputError for a full cache, and for a change of `skip` that the KV rule forbids (see the class).
        """
        require_tensor("tokens", tokens, f"integers [{len(self._lengths)}]")
        if tokens.shape != self._lengths.shape or not len(tokens):
            raise InputError(
                f"tokens: shape {list(tokens.shape)} given; [{len(self._lengths)}], as in prefill, is accepted"
            )
        check_ids(tokens, self.decoder.vocab_size, "tokens", "[batch]")
        tokens = tokens.to(self._device, torch.int64).contiguous()
        if self._longest is None:
            self._longest = int(self._lengths.max())
        if self._longest >= self.max_len:
            raise InputError(f"the cache is full: {self.max_len} tokens (max_len)")
        if skip is not None:
            self._skip_plan = self._changed_plan(skip)
        self._stream = None
        logits = self._run(tokens, self._lengths)
        self._lengths = self._lengths + 1
        self._longest += 1
        return logits

    def _changed_plan(self, skip: Skip) -> SkipPlan:
        current, new = self._skip_plan, skip_plan(self._running, skip)
        if current.device_mask is not None or new.device_mask is not None:
            raise InputError("skip: a device mask holds from one prefill to the next; until then None is accepted")
        # By this very rule the blocks whose MHA runs now are those with a cache row for every token.
        for block, runs, has_rows in zip(self.decoder.blocks, new.mha, current.mha, strict=True):
            if runs and not has_rows:
                raise InputError(
                    f"skip: the MHA of block {block.index} was skipped for cached tokens, whose keys and values are"
                    " missing; it must stay skipped until the next prefill"
                )
        return new

    def _run(self, tokens: Tensor, positions: Tensor) -> Tensor:
        if self._record is None:
            return self._step(tokens, positions)
        return self._graph(tokens, positions)(tokens, positions)

    def _step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Tokens `[B]` at cache rows positions `[B]`, under the current plan: the next logits `[B, V]`."""
        if self._fused_steps:
            parts = zip(self._fused_steps, tokens.split(SKINNY_ROWS), positions.split(SKINNY_ROWS), strict=False)
            logits = [step(some, places, self._skip_plan.mask) for step, some, places in parts]
            return logits[0] if len(logits) == 1 else torch.cat(logits)
        positions = positions.unsqueeze(1)
        x = embed(self._running, tokens.unsqueeze(1))
        return self._logits(self._blocks(x, positions, Attention(positions), self._caches, self.cos, self.sin)[:, 0])

    def _graph(self, tokens: Tensor, positions: Tensor) -> StepGraph:
        """The recorded step for this batch size and plan, recorded when first needed; the last few are kept.

        A device mask is a buffer that the step reads, so that all device masks share a recording.
        """
        key = (len(tokens), self._skip_plan, self._skip_plan.device_mask is not None)
        if key not in self._graphs:
            while len(self._graphs) >= MAX_GRAPHS:
                del self._graphs[next(iter(self._graphs))]
            self._graphs[key] = StepGraph(self._step, tokens, positions, self._record)
        return self._graphs[key]

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        skip: Skip = None,
        params: SamplingParams | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Tensor | tuple[Tensor, ...]:
        """New tokens only, int64 `[B, new]`, for prompts `input_ids [B, T]` (ids, padding and skip as in `prefill`).

        params: how the sequences are continued; or the fields of `SamplingParams` as keywords, not both. A sequence
        that has ended is filled with padding, and generation stops when all have; so without `eos_token_id` it gives
        exactly `max_new_tokens`.

        With `logprobs`: (tokens, log-probabilities `[B, new]` float32) instead. They are the model's own, log softmax
        of the logits before repetition penalty, temperature, top_k, top_p and min_p; 0 for padding.
        InputError, before any work, when a prompt and its new tokens exceed `max_len`.
        """
        params = sampling_params(params, options)
        steps = self._steps(input_ids, attention_mask, skip, params)
        result = tuple(torch.stack(values, dim=1) for values in zip(*steps, strict=True))
        return result if params.logprobs else result[0]

    def stream(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        skip: Skip = None,
        params: SamplingParams | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[Tensor | tuple[Tensor, ...]]:
        """The tokens that `generate` gives, as they come: int64 `[B]` a step, or (tokens, log-probabilities).

        The input is checked at once; the prompt runs when the first token is asked for. The iterator may be left at any
        step. InputError from it when another call has used the engine meanwhile (it has one cache).
        """
        params = sampling_params(params, options)
        steps = self._steps(input_ids, attention_mask, skip, params)
        return steps if params.logprobs else (tokens for (tokens,) in steps)

    def _steps(
        self, input_ids: Tensor, attention_mask: Tensor | None, skip: Skip, params: SamplingParams
    ) -> Iterator[tuple[Tensor, ...]]:
        """Check everything; then an iterator of (tokens `[B]`,) or, with `logprobs`, (tokens, log-probabilities)."""
        checked = prompts(input_ids, attention_mask, self.decoder.vocab_size)
        batch, device = len(checked.lengths), self._device
        limits = token_limits(params, batch)
        self._check([length + limit - 1 for length, limit in zip(checked.lengths, limits, strict=True)])
        plan = skip_plan(self._running, skip)
        stops = stop_ids(params, batch, device)
        points = uniforms(params.seed, batch, max(limits), device) if params.temperature else None
        return self._run_steps(checked, plan, limits, stops, params, points)

    def _run_steps(
        self,
        checked: Prompts,
        plan: SkipPlan,
        limits: list[int],
        stops: Tensor | None,
        params: SamplingParams,
        points: Tensor | None,
    ) -> Iterator[tuple[Tensor, ...]]:
        logits = self._start(checked, plan)
        stream = self._stream = object()
        self._longest = None
        limit = torch.tensor(limits, device=logits.device)
        ended = torch.zeros(len(limits), dtype=torch.bool, device=logits.device)
        held = self._held(checked) if params.penalizes else None
        for step in range(max(limits)):
            token = choose(logits, params, None if points is None else points[:, step], held)
            padded = token.masked_fill(ended, self.decoder.pad_token_id())
            result: tuple[Tensor, ...] = (padded,)
            if params.logprobs:
                result = (padded, log_probability(logits, token).masked_fill(ended, 0.0))
            ended = ended | (limit <= step + 1)
            if stops is not None:
                ended = ended | (token[:, None] == stops).any(dim=1)
            if held is not None:
                held.scatter_(1, token[:, None], True)
            yield result
            if step + 1 == max(limits) or (stops is not None and bool(ended.all())):
                return
            if self._stream is not stream:
                raise InputError("stream: another call has used the engine meanwhile; one stream at a time is accepted")
            logits = self._advance(token, ended)

    @torch.inference_mode()
    def _advance(self, tokens: Tensor, ended: Tensor) -> Tensor:
        """`decode` in a stream. A sequence that has ended stays where it is and writes that one row anew."""
        logits = self._run(tokens, self._lengths.clamp(max=self.max_len - 1))
        self._lengths = self._lengths + ~ended
        return logits

    def _held(self, checked: Prompts) -> Tensor:
        """Which tokens each prompt holds: bool `[B, V]`."""
        shape = (len(checked.lengths), self.decoder.vocab_size)
        held = torch.zeros(shape, dtype=torch.bool, device=self._device)
        ids = checked.ids.to(held.device, torch.int64)
        for row, prompt, length in zip(held, ids, checked.lengths, strict=True):
            row[prompt[:length]] = True
        return held

    def _check(self, rows: list[int]) -> None:
        """InputError when the sequences are too many, or the cache rows that one of them needs."""
        if len(rows) > self.max_batch:
            raise InputError(f"input_ids: a batch of {len(rows)} given; up to {self.max_batch} (max_batch) is accepted")
        if max(rows) > self.max_len:
            raise InputError(
                f"{max(rows)} tokens needed for prompt and new tokens; up to {self.max_len} (max_len) are accepted"
            )

    def _last_states(self, checked: Prompts) -> Tensor:
        """The prompts through all blocks, chunk by chunk: the hidden states of their last tokens, `[B, hidden]`."""
        decoder, lengths, limit = self.decoder, checked.lengths, self.decoder.rope.limit
        # Beyond the limit the frequencies depend on the prompt's length: each sequence runs as if it were alone.
        alone = limit is not None and max(lengths) > limit
        last = torch.empty(
            len(lengths), decoder.hidden_size, dtype=activation_dtype(self._running), device=self._device
        )
        cos, sin = self.cos, self.sin
        for chunk in chunks(lengths, self.prefill_chunk, together=not alone):
            if limit is not None and alone and chunk.start == 0:
                length = lengths[chunk.first]
                cos, sin = decoder.rope.tables(length, prompt=length) if length > limit else (self.cos, self.sin)
            x = self._chunk(checked.ids, chunk, cos, sin)
            for b in range(chunk.first, chunk.last):
                if chunk.start < lengths[b] <= chunk.stop:
                    last[b] = x[b - chunk.first, lengths[b] - 1 - chunk.start]
        return last

    def _chunk(self, ids: Tensor, chunk: Chunk, cos: Tensor, sin: Tensor) -> Tensor:
        """The tokens of a chunk through all blocks: hidden states `[sequences, tokens, hidden]`."""
        rows = slice(chunk.first, chunk.last)
        caches = [pair and (pair[0][rows], pair[1][rows]) for pair in self._caches]
        x = embed(self._running, ids[rows, chunk.start : chunk.stop])
        positions = torch.arange(chunk.start, chunk.stop, device=x.device).expand(x.shape[:2]).contiguous()
        return self._blocks(x, positions, Attention(positions, chunk.start), caches, cos, sin)

    def _blocks(
        self,
        x: Tensor,
        positions: Tensor,
        attention: Attention,
        caches: list[tuple[Tensor, Tensor] | None],
        cos: Tensor,
        sin: Tensor,
    ) -> Tensor:
        """x `[B, T, hidden]` through every block that runs, appending to `caches` at `positions [B, T]`."""
        eps, plan = self.decoder.eps, self._skip_plan
        mask = plan.device_mask
        for i, (block, cache) in enumerate(zip(self._running.blocks, caches, strict=True)):
            mha, ffn = block.mha, block.ffn
            if plan.mha[i] and mha is not None and cache is not None:
                (keys, values), sublayer = cache, 2 * i
                q = rotated_queries(mha, x, eps, cos, sin, positions, keys, values, mask, sublayer)
                context = attention(q, keys, values, mha.window, mask, sublayer)
                x = ops.linear_residual(context.flatten(2), mha.o.weight, mha.o.bias, x, mask, sublayer)
            if plan.ffn[i] and ffn is not None:
                sublayer = 2 * i + 1
                a = ops.norm_gate_up(
                    x, ffn.norm, eps, ffn.gate.weight, ffn.up.weight, ffn.gate.bias, ffn.up.bias, mask, sublayer
                )
                x = ops.linear_residual(a, ffn.down.weight, ffn.down.bias, x, mask, sublayer)
        return x

    def _logits(self, x: Tensor) -> Tensor:
        head = self._running.head
        return ops.norm_head(x, self._running.norm, self._running.eps, head.weight, head.bias)


def _some(pair: tuple[Tensor, Tensor] | None, first: int) -> tuple[Tensor, Tensor] | None:
    """The cache of the SKINNY_ROWS sequences from `first` on."""
    return None if pair is None else (pair[0][first : first + SKINNY_ROWS], pair[1][first : first + SKINNY_ROWS])
