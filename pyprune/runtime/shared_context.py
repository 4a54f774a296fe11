"""Sequences that begin alike, read together: what they share goes through the model once, and then each one's rest.

A `Family` is a prefix and its branches. All tokens of several families lie side by side without padding, so that every
linear sees one matrix. On a CPU attention reads them where they lie (`shared_prefix_attention`); elsewhere it puts them
into rows, the prefixes first, then each branch behind a copy of its prefix's keys and values.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pyprune import ops
from pyprune.models.decoder import MHA, Decoder
from pyprune.runtime.attention import runs_operator
from pyprune.runtime.sequence import add_ffn, embed, rotated_queries
from pyprune.runtime.skip import SkipPlan


@dataclass(frozen=True)
class Family:
    """Sequences with the same first tokens: `prefix`, not empty, and what follows it in each, perhaps nothing.

    `members`: what the caller calls each branch.
    """

    prefix: Sequence[int]
    branches: Sequence[Sequence[int]]
    members: Sequence[int]

    @property
    def tokens(self) -> int:
        """How many tokens are read."""
        return len(self.prefix) + sum(map(len, self.branches))

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return len(self.prefix) + max(map(len, self.branches))


def families(sequences: Sequence[Sequence[int]], most_tokens: int, most_branches: int = 64) -> list[Family]:
    """The sequences grouped so that the fewest tokens are read in families of up to `most_tokens` and `most_branches`.

    Sequences, none empty, are sorted as words in a dictionary; a family is a run of them, and saves its shared prefix
    for all but one. The best division into runs is found by dynamic programming. A sequence longer than `most_tokens`
    has a family to itself. `members` are positions in `sequences`.
    """
    order = sorted(range(len(sequences)), key=lambda index: tuple(sequences[index]))
    shared = [0, *(_shared(sequences[a], sequences[b]) for a, b in itertools.pairwise(order))]
    saved, start = [0] * (len(order) + 1), [0] * (len(order) + 1)
    for end in range(1, len(order) + 1):
        saved[end], start[end] = saved[end - 1], end - 1
        prefix, total = len(sequences[order[end - 1]]), len(sequences[order[end - 1]])
        for first in range(end - 2, max(-1, end - 1 - most_branches), -1):
            prefix = min(prefix, shared[first + 1])
            total += len(sequences[order[first]])
            saving = (end - first - 1) * prefix
            if prefix == 0:
                break
            if total - saving <= most_tokens and saved[first] + saving > saved[end]:
                saved[end], start[end] = saved[first] + saving, first
    result, end = [], len(order)
    while end:
        members = order[start[end] : end]
        prefix = len(sequences[members[0]]) if len(members) == 1 else min(shared[start[end] + 1 : end])
        head = sequences[members[0]][:prefix]
        result.append(Family(head, [sequences[member][prefix:] for member in members], members))
        end = start[end]
    return result


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first tokens are the same."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def packs(groups: Sequence[Family], most_tokens: int) -> Iterator[list[Family]]:
    """The families, long ones first, in batches of similar lengths of up to `most_tokens`, or of one family."""
    pack: list[Family] = []
    tokens = 0
    for family in sorted(groups, key=lambda family: (-family.longest, -len(family.prefix))):
        if pack and tokens + family.tokens > most_tokens:
            yield pack
            pack, tokens = [], 0
        pack.append(family)
        tokens += family.tokens
    if pack:
        yield pack


@dataclass(frozen=True)
class _Rows:
    """Sequences as attention sees them, padded: which tokens of the pack ask (`queries [B, T]`) and which they may see
    (`keys [B, L]`), the row of its own among those that each one asks from (`positions [B, T]`), and where in
    `[B * T]` each token that is no padding stands, in the pack's order."""

    queries: Tensor
    keys: Tensor
    positions: Tensor
    home: Tensor


class Pack:
    """Families laid out side by side: all prefixes, then all branches, of each family in order.

    `ids [N]` the tokens, `positions [N]` their places in their sequences; `row(family, branch, position)`: where the
    token at a position of a sequence lies.
    """

    def __init__(self, members: Sequence[Family], device: torch.device) -> None:
        ids: list[int] = []
        positions: list[int] = []
        self._prefix: list[int] = []
        self._branch: list[list[int]] = []
        for family in members:
            self._prefix.append(len(ids))
            ids += family.prefix
            positions += range(len(family.prefix))
        prefixes = [range(start, start + len(f.prefix)) for start, f in zip(self._prefix, members, strict=True)]
        branches: list[range] = []
        contexts: list[range] = []
        for family, prefix in zip(members, prefixes, strict=True):
            self._branch.append([])
            for branch in family.branches:
                self._branch[-1].append(len(ids))
                if branch:
                    branches.append(range(len(ids), len(ids) + len(branch)))
                    contexts.append(prefix)
                ids += branch
                positions += range(len(prefix), len(prefix) + len(branch))
        none = range(0)
        sequences = [(run, none) for run in prefixes], list(zip(branches, contexts, strict=True))
        self._sequences: Tensor | None = None
        self._rows: list[_Rows] = []
        if device.type == "cpu" and runs_operator(max(map(len, (*prefixes, *branches))), device):
            in_order = itertools.chain.from_iterable(sequences)
            self._sequences = torch.tensor([[len(own), seen.start, len(seen)] for own, seen in in_order])
        else:
            self._rows = [_rows(kind, device) for kind in sequences if kind]
        self._families = members
        self.longest = max(family.longest for family in members)
        self.ids = torch.tensor(ids, device=device)
        self.positions = torch.tensor(positions, device=device)

    def row(self, family: int, branch: int, position: int) -> int:
        """Where the token at `position` of that sequence lies in `ids`."""
        prefix = len(self._families[family].prefix)
        if position < prefix:
            return self._prefix[family] + position
        return self._branch[family][branch] + position - prefix

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, window: int) -> Tensor:
        """q `[N, heads, head_dim]`, keys and values `[kv_heads, N, head_dim]` -> `[N, heads, head_dim]`."""
        if self._sequences is not None:
            return ops.shared_prefix_attention(q, keys, values, self._sequences, q.shape[-1] ** -0.5, window)
        return torch.cat([_attend(rows, q, keys, values, window) for rows in self._rows])


def _rows(sequences: Sequence[tuple[range, range]], device: torch.device) -> _Rows:
    """Sequences whose own tokens, which ask, lie behind those of a prefix, each with where it lies."""
    batch, longest = len(sequences), max(len(own) + len(prefix) for own, prefix in sequences)
    lengths = [len(own) for own, _ in sequences]
    queries = torch.zeros(batch, max(lengths), dtype=torch.int64)
    positions = torch.zeros_like(queries)  # padding asks from row 0, which costs least
    seen = torch.zeros(batch, longest, dtype=torch.int64)
    for b, (own, prefix) in enumerate(sequences):
        seen[b, : len(prefix) + len(own)] = torch.tensor([*prefix, *own])
        queries[b, : len(own)] = torch.tensor(own)
        positions[b, : len(own)] = torch.arange(len(prefix), len(prefix) + len(own))
    used = torch.arange(queries.shape[1]) < torch.tensor(lengths)[:, None]
    home = used.flatten().nonzero()[:, 0]
    return _Rows(queries.to(device), seen.to(device), positions.to(device), home.to(device))


def _attend(rows: _Rows, q: Tensor, keys: Tensor, values: Tensor, window: int) -> Tensor:
    heads, head_dim = q.shape[1:]
    queries = F.embedding(rows.queries, q.flatten(1)).unflatten(2, (heads, head_dim))
    k, v = (
        x.index_select(1, rows.keys.flatten()).unflatten(1, rows.keys.shape).transpose(0, 1) for x in (keys, values)
    )
    tokens = queries.shape[1]
    if runs_operator(tokens, q.device):
        context = ops.decode_attention(queries, k, v, rows.positions, head_dim**-0.5, None, 0, None, window)
    else:
        row, position = torch.arange(k.shape[2], device=q.device), rows.positions[:, None, :, None]
        seen = row <= position
        if window:
            seen &= row > position - window
        context = F.scaled_dot_product_attention(
            queries.transpose(1, 2), k.to(q.dtype), v.to(q.dtype), attn_mask=seen, enable_gqa=heads != k.shape[1]
        ).transpose(1, 2)
    return context.reshape(-1, heads, head_dim).index_select(0, rows.home)


@torch.inference_mode()
def shared_states(decoder: Decoder, pack: Pack, plan: SkipPlan) -> Tensor:
    """The pack through every block that runs: hidden states `[N, hidden]` before the final norm, in its tokens' order.

    Where the rotation depends on a sequence's length, it is that of the pack's longest one.
    """
    x = embed(decoder, pack.ids[None])
    cos, sin = decoder.rope.tables(pack.longest, prompt=pack.longest)
    for i, block in enumerate(decoder.blocks):
        if plan.mha[i] and block.mha is not None:
            x = _add_mha(block.mha, x, cos, sin, decoder.eps, pack)
        if plan.ffn[i] and block.ffn is not None:
            x = add_ffn(block.ffn, x, decoder.eps)
    return x[0]


def _add_mha(mha: MHA, x: Tensor, cos: Tensor, sin: Tensor, eps: float, pack: Pack) -> Tensor:
    tokens = x.shape[1]
    keys = x.new_empty(1, mha.kv_heads, tokens, mha.head_dim)
    values = torch.empty_like(keys)
    slots = torch.arange(tokens, device=x.device)[None]
    q = rotated_queries(mha, x, eps, cos, sin, pack.positions[None], keys, values, slots=slots)
    context = pack.attend(q[0], keys[0], values[0], mha.window)
    return ops.linear_residual(context.flatten(1)[None], mha.o.weight, mha.o.bias, x)
