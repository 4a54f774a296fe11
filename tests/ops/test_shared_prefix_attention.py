"""Attention of sequences side by side behind shared prefixes: as each one would alone, copied behind its prefix."""

from __future__ import annotations

import functools
import itertools
import random as draws

import pytest
import torch

from pyprune import ops
from tests import seeds
from tests.judge import assert_no_worse_than_torch
from tests.library import needs_library
from tests.ops.inputs import WEIGHTS, double, random

D = ops.reference
SHAPES = [  # heads, kv_heads, head_dim
    (9, 3, 64),
    (4, 2, 10),
    (3, 3, 22),
    (70, 1, 8),
    (2, 1, 128),
]
LENGTHS = {  # (own tokens, which earlier sequence is the prefix)
    "alone": [(5, None)],
    "a prefix of its own each": [(3, None), (70, None), (1, 0), (23, 1), (2, 1), (0, 0), (30, 0)],
    "longer than a split": [(260, None), (1, 0), (258, 0)],  # of 256 keys
}
WINDOWS = [0, 1, 7, 280]
LONG = "longer than a split"


def cases() -> list[tuple]:
    """(shape, lengths, window, dtype): all of them, but of long ones of three shapes a window and a dtype each."""
    every = itertools.product(SHAPES, LENGTHS, WINDOWS, WEIGHTS)
    few = dict(zip(WINDOWS, [*WEIGHTS, torch.float32], strict=True))
    return [
        (shape, lengths, window, dtype)
        for shape, lengths, window, dtype in every
        if lengths != LONG
        or shape in ((9, 3, 64), (2, 1, 128))
        or (few[window] == dtype and (shape[0] != 70 or window in (0, 7)))
    ]


def sequences(lengths) -> torch.Tensor:
    begins = torch.tensor([0, *(own for own, _ in lengths)]).cumsum(0).tolist()
    return torch.tensor(
        [[own, *((0, 0) if prefix is None else (begins[prefix], lengths[prefix][0]))] for own, prefix in lengths]
    )


def inputs(shape: tuple[int, int, int], tokens: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    heads, kv_heads, head_dim = shape
    keys, values = (random(kv_heads, tokens, head_dim, dtype=dtype) for _ in range(2))
    return random(tokens, heads, head_dim) * 2, keys, values


def alone(q, keys, values, entries, scale: float, window: int) -> torch.Tensor:
    """Each sequence by `decode_attention` over a cache of its own: the definition, with everything copied."""
    parts, begin = [], 0
    for own, prefix, seen in entries.tolist():
        k, v = (torch.cat([x[:, prefix : prefix + seen], x[:, begin : begin + own]], 1)[None] for x in (keys, values))
        positions = torch.arange(seen, seen + own)[None]
        if own:
            parts.append(
                D.decode_attention(q[None, begin : begin + own], k, v, positions, scale, None, 0, None, window)[0]
            )
        begin += own
    return torch.cat(parts)


@functools.cache  # one for all instruction sets
def judged(shape: tuple[int, int, int], name: str, window: int, dtype: torch.dtype) -> tuple:
    """The arguments of a case, and what plain PyTorch makes of them in `dtype` and in float64."""
    entries = sequences(LENGTHS[name])
    args = inputs(shape, sum(own for own, _ in LENGTHS[name]), dtype)
    rest = entries, shape[2] ** -0.5, window
    return (*args, *rest), alone(args[0].to(dtype), *args[1:], *rest), alone(*double(*args), *rest)


@pytest.mark.parametrize(("shape", "lengths", "window", "dtype"), cases(), ids=str)
def test_each_sequence_attends_as_alone(isa: str, shape: tuple, lengths: str, window: int, dtype: torch.dtype):
    args, plain, exact = judged(shape, lengths, window, dtype)
    result = ops.shared_prefix_attention(*args)
    assert result.dtype == args[0].dtype
    assert_no_worse_than_torch(result, plain, exact)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_reference_has_each_sequence_attend_as_alone(shape: tuple, lengths: str, window: int):
    args, _, exact = judged(shape, lengths, window, torch.float32)
    assert_no_worse_than_torch(D.shared_prefix_attention(*double(*args)), exact, exact)


@needs_library
def test_nothing_else_in_the_pack_changes_a_bit(isa: str):
    draw = draws.Random(seeds.seed())
    lengths = [(draw.randrange(1, 90), None) for _ in range(4)] + [(draw.randrange(1, 40), i) for i in range(4)]
    entries = sequences(lengths)
    q, keys, values = inputs((6, 2, 18), sum(own for own, _ in lengths), torch.float32)
    whole = ops.shared_prefix_attention(q, keys, values, entries, 0.3)
    threads = torch.get_num_threads()
    begins = entries[:, 0].cumsum(0) - entries[:, 0]
    for at, (own, prefix) in enumerate(lengths):
        rows = slice(int(begins[at]), int(begins[at]) + own)
        before = slice(0, 0) if prefix is None else slice(int(begins[prefix]), int(begins[prefix]) + lengths[prefix][0])
        pair = [torch.cat([x[..., before, :], x[..., rows, :]], -2) for x in (q.transpose(0, 1), keys, values)]
        seen = before.stop - before.start
        few = torch.tensor([[seen, 0, 0], [own, 0, seen]])
        torch.set_num_threads(1)
        try:
            result = ops.shared_prefix_attention(pair[0].transpose(0, 1).contiguous(), *pair[1:], few, 0.3)
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(result[seen:], whole[rows])


@needs_library
def test_keys_may_lie_in_a_larger_cache(isa: str):
    entries = torch.tensor([[4, 0, 0], [9, 1, 3]])
    q, keys, values = inputs((4, 2, 10), 13, torch.bfloat16)
    room = torch.full((2, 2, 40, 12), float("nan"), dtype=torch.bfloat16)
    room[0, :, 5:18, :10], room[1, :, 5:18, :10] = keys, values
    inside = room[0, :, 5:18, :10], room[1, :, 5:18, :10]
    expected = ops.shared_prefix_attention(q, keys, values, entries, 0.3)
    assert torch.equal(ops.shared_prefix_attention(q, *inside, entries, 0.3), expected)


@pytest.mark.parametrize("function", [ops.shared_prefix_attention, D.shared_prefix_attention], ids=["op", "reference"])
@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([[5, 0, 0]], "5 tokens in all; the 6 of q"),
        ([[7, 0, 0]], r"\[7, 0, 0\] is outside 6 tokens"),
        ([[3, 0, 0], [3, 4, 3]], r"\[3, 4, 3\] is outside 6 tokens"),
        ([[3, 0, 0], [3, -1, 1]], r"\[3, -1, 1\] is outside 6 tokens"),
        ([[3, 0, 0], [3, 0, -1]], r"\[3, 0, -1\] is outside 6 tokens"),
        ([[3, 0, 0], [3, 0, 2**62]], "is outside 6 tokens"),
        ([[6, 0]], r"sequences: .*\[sequences, 3\] is expected"),
    ],
)
def test_sequences_that_do_not_fit_are_refused(function, entries, message: str):
    with pytest.raises(RuntimeError, match=message):
        function(*inputs((4, 2, 10), 6, torch.float32), torch.tensor(entries), 0.3)


@pytest.mark.parametrize("function", [ops.shared_prefix_attention, D.shared_prefix_attention], ids=["op", "reference"])
def test_other_shapes_are_refused(function):
    q, keys, values = inputs((4, 2, 10), 6, torch.float32)
    entries = torch.tensor([[6, 0, 0]])
    for wrong in ((q, keys[:, :5], values[:, :5]), (q, keys[..., :8], values[..., :8]), (q[:, :3], keys, values)):
        with pytest.raises(RuntimeError, match="keys"):
            function(*(x.contiguous() for x in wrong), entries, 0.3)
    with pytest.raises(RuntimeError, match="window: -1"):
        function(q, keys, values, entries, 0.3, -1)
