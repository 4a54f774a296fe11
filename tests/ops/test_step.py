"""The whole decode step against its reference, which is made of the other operators."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyprune import ops
from pyprune.ops.schemas import LAYOUT
from tests.library import needs_library
from tests.ops.inputs import WEIGHTS, norm, random, weight

D = ops.reference
HIDDEN, VOCAB, LENGTH = 50, 101, 600
HEAD_DIM = 22
# heads, KV heads, FFN width, extras (biases and q/k-norm), window; 0 heads or width: no such half
BLOCKS = [(9, 3, 77, False, 0), (4, 1, 0, True, 40), (0, 1, 130, True, 0), (3, 3, 33, True, 0)]


def step_arguments(batch: int, dtype: torch.dtype, positions: Tensor) -> list:
    weights: list[Tensor] = []
    layout, caches = [], []

    def place(tensor: Tensor | None) -> int:
        if tensor is None:
            return -1
        weights.append(tensor)
        return len(weights) - 1

    for heads, kv_heads, width, extras, window in BLOCKS:
        part: dict[str, Tensor] = {}
        if heads:
            sizes = {"q": heads * HEAD_DIM, "k": kv_heads * HEAD_DIM, "v": kv_heads * HEAD_DIM}
            part |= {name: weight(n, HIDDEN, dtype) for name, n in sizes.items()}
            part |= {"mha_norm": norm(HIDDEN, dtype), "o": weight(HIDDEN, heads * HEAD_DIM, dtype)}
            if extras:
                part |= {f"{name}_bias": random(n, dtype=dtype) for name, n in sizes.items()}
                part |= {"q_norm": norm(HEAD_DIM, dtype), "k_norm": norm(HEAD_DIM, dtype)}
                part |= {"o_bias": random(HIDDEN, dtype=dtype)}
            caches += [random(batch + 1, kv_heads, LENGTH, HEAD_DIM, dtype=dtype) for _ in range(2)]
        if width:
            part |= {"ffn_norm": norm(HIDDEN, dtype), "gate": weight(width, HIDDEN, dtype)}
            part |= {"up": weight(width, HIDDEN, dtype), "down": weight(HIDDEN, width, dtype)}
            if extras:
                part |= {"gate_bias": random(width, dtype=dtype), "up_bias": random(width, dtype=dtype)}
                part |= {"down_bias": random(HIDDEN, dtype=dtype)}
        layout += [window if name == "window" else place(part.get(name)) for name in LAYOUT]
    angle = torch.rand(LENGTH, HEAD_DIM // 2) * 6
    tokens = torch.randint(0, VOCAB, (batch,))
    head = weight(VOCAB, HIDDEN, dtype)
    return [
        tokens, positions, random(VOCAB, HIDDEN, dtype=dtype), weights, layout, caches, norm(HIDDEN, dtype), 1e-5, head,
        random(VOCAB, dtype=dtype), angle.cos(), angle.sin(),
    ]  # fmt: skip


def own_caches(args: list) -> list:
    """The same arguments with caches of their own."""
    return [[c.clone() for c in args[5]] if place == 5 else value for place, value in enumerate(args)]


@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize("batch", [1, 3, 16, 64])
def test_the_step_has_the_bits_of_its_stages(isa: str, batch: int, dtype: torch.dtype):
    positions = torch.randint(0, LENGTH, (batch,))
    positions[0] = 5 if batch == 1 else LENGTH - 1  # one stretch of the sequence, and several
    args = step_arguments(batch, dtype, positions)
    whole, parts = own_caches(args), own_caches(args)
    result, expected = ops.decode_step(*whole), D.decode_step(*parts)
    assert torch.isfinite(result).all()
    assert torch.equal(result, expected)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(whole[5], parts[5], strict=True))
    # Each sequence alone has the same bits as in the batch.
    alone = own_caches(args)
    alone[0], alone[1] = args[0][-1:], args[1][-1:]
    alone[5] = [cache[batch - 1 : batch] for cache in alone[5]]
    assert torch.equal(ops.decode_step(*alone), result[-1:])


@pytest.mark.parametrize("flags", [[0], [1], [2, 5], [0, 1, 2, 5, 6, 7]], ids=str)
def test_a_skipped_half_does_nothing_and_its_cache_stays_as_it_was(isa: str, flags: list[int]):
    args = step_arguments(3, torch.float32, torch.tensor([7, 300, 0]))
    skip = torch.zeros(2 * len(BLOCKS), dtype=torch.bool)
    skip[flags] = True
    whole, parts = own_caches(args), own_caches(args)
    result = ops.decode_step(*whole, skip)
    assert torch.equal(result, D.decode_step(*parts, skip))
    assert not torch.equal(result, ops.decode_step(*own_caches(args)))
    cached = [block for block, (heads, *_) in enumerate(BLOCKS) if heads]
    for place, block in enumerate(cached):
        untouched = torch.equal(whole[5][2 * place], args[5][2 * place])
        assert untouched == (2 * block in flags)


def test_threads_and_their_number_change_no_bit():
    args = step_arguments(5, torch.bfloat16, torch.tensor([599, 0, 255, 256, 17]))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 7):  # more than there are cores, too
            torch.set_num_threads(count)
            results += [ops.decode_step(*own_caches(args)) for _ in range(3)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("run", [ops.decode_step, D.decode_step], ids=["kernel", "reference"])
@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.tensor([0, 101]), r"tokens: 101 is outside \[0, 101\)"),
        (1, torch.tensor([3, 600]), r"positions: 600 is outside \[0, 600\)"),
        (0, torch.zeros(65, dtype=torch.int64), "tokens: 1 to 64 are expected"),
        (4, [0] * 18, "layout: 19 numbers a block are expected"),
    ],
)
def test_wrong_arguments_are_named(run, place: int, value: object, message: str):
    args = step_arguments(2, torch.float32, torch.tensor([1, 2]))
    args[place] = value
    with pytest.raises(RuntimeError, match=message):
        run(*args)


@needs_library
def test_weights_that_do_not_fit_are_named():
    args = step_arguments(2, torch.float32, torch.tensor([1, 2]))
    for name, message in (("down", "down"), ("o", "o_weight"), ("k", "whole heads"), ("up", "up: the shape")):
        broken = list(args[3])
        where = args[4][LAYOUT.index(name)]
        broken[where] = broken[where][:-1, :-1] if name == "down" else broken[where][:-1]
        with pytest.raises(RuntimeError, match=message):
            ops.decode_step(*args[:3], broken, *args[4:])
    for run in (ops.decode_step, D.decode_step):
        with pytest.raises(RuntimeError, match="caches"):
            run(*args[:5], args[5][:-1], *args[6:])
        with pytest.raises(RuntimeError, match="layout: 999"):
            run(*args[:4], [999, *args[4][1:]], *args[5:])
        with pytest.raises(RuntimeError, match="skip"):
            run(*args, torch.zeros(5, dtype=torch.bool))


@needs_library
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("up_bias", torch.Tensor.half, "up_bias: the dtype of gate_bias"),
        ("down_bias", torch.Tensor.double, "down_bias: float32, bfloat16 or float16"),
        ("q_norm", torch.Tensor.int, "q_norm: float32, bfloat16 or float16"),
    ],
)
def test_a_wrong_dtype_is_named_before_any_cache_is_touched(name: str, change, message: str):
    args = own_caches(step_arguments(2, torch.float32, torch.tensor([1, 2])))
    block = next(b for b, (heads, _, width, extras, _) in enumerate(BLOCKS) if heads and width and extras)
    where = args[4][block * len(LAYOUT) + LAYOUT.index(name)]
    args[3] = [change(w) if place == where else w for place, w in enumerate(args[3])]
    before = [cache.clone() for cache in args[5]]
    with pytest.raises(RuntimeError, match=message):
        ops.decode_step(*args)
    args[9] = args[9][:3]
    with pytest.raises(RuntimeError, match="head_bias"):
        ops.decode_step(*args[:3], step_arguments(2, torch.float32, torch.tensor([1, 2]))[3], *args[4:])
    assert all(torch.equal(cache, same) for cache, same in zip(args[5], before, strict=True))


def test_a_gradient_is_refused():
    args = step_arguments(2, torch.float32, torch.tensor([1, 2]))
    with pytest.raises(RuntimeError, match="has no gradient"):
        ops.decode_step(*args[:2], args[2].requires_grad_(), *args[3:])
