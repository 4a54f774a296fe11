"""The operators' check of themselves: its cases and its judgement, on a CPU."""

from __future__ import annotations

import pytest
import torch

from pyprune import ops
from pyprune.ops.self_check import judgement
from pyprune.ops.self_check.cases import Case, Draw, cases
from pyprune.ops.self_check.judgement import check, direct

OPERATORS = set(ops.gpu.KERNELS)

LINEAR = Case("padded_linear", "3x20 -> 40", lambda d: [d.normal(3, 20), d.weight(40, 20), None])


def judged(monkeypatch, function) -> dict:
    monkeypatch.setattr(ops, "padded_linear", function)
    return check(LINEAR, torch.float32, "cpu", 0)


def test_a_right_operator_passes_in_every_dtype():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert check(LINEAR, dtype, "cpu", 0)["passed"]


def test_a_result_that_is_too_inexact_fails_with_its_error(monkeypatch):
    told = judged(monkeypatch, lambda x, w, b: (x.bfloat16() @ w.bfloat16().T).float())
    assert (told["passed"], told["exception"]) == (False, None)
    assert told["ratio"] > 2
    assert 1e-4 < told["error"] < 0.1


def test_an_unwritten_element_fails(monkeypatch):
    def forgetful(x, w, b):
        result = x @ w.T
        result[1, 7] = float("nan")
        return result

    assert "NaN" in judged(monkeypatch, forgetful)["exception"]


def test_an_operator_that_raises_fails_with_its_words(monkeypatch):
    def broken(x, w, b):
        raise RuntimeError("out of shared memory")

    assert judged(monkeypatch, broken)["exception"] == "RuntimeError: out of shared memory"


def test_different_bits_on_the_second_run_fail(monkeypatch):
    turn = []

    def drifting(x, w, b):
        turn.append(1)
        return x @ w.T * (1 + 2e-7 * len(turn))

    told = judged(monkeypatch, drifting)
    assert (told["passed"], told["same_bits_twice"]) == (False, False)


def test_a_row_of_the_cache_written_beside_its_position_fails(monkeypatch):
    right = ops.norm_qkv_rope

    def straying(*args):
        result = right(*args)
        args[14][-1, 0, 0] = 1.0
        return result

    case = next(case for case in cases(0, "tiny") if case.operator == "norm_qkv_rope")
    assert check(case, torch.float32, "cpu", 0)["passed"]
    monkeypatch.setattr(ops, "norm_qkv_rope", straying)
    assert "NaN" in check(case, torch.float32, "cpu", 0)["exception"]


def test_the_cases_cover_every_operator_odd_and_aligned_few_and_many_rows_and_the_mask():
    found = list(cases(3))
    assert {case.operator for case in found} == OPERATORS
    labels = [case.label for case in found if case.operator == "linear_residual"]
    for part in ("1x129 -> 171", "1280x512 -> 256", "1x7155 -> 4096", "skip True", "skip False", "bias"):
        assert any(part in label for label in labels), part
    for operator, part in (("norm_qkv_rope", "slots"), ("decode_attention", "first rows, window 30")):
        assert any(part in case.label for case in found if case.operator == operator), part
    assert len({(case.operator, case.label) for case in found}) == len(found)


def test_fresh_odd_sizes_come_with_a_fresh_seed():
    assert [case.label for case in cases(1)] == [case.label for case in cases(1)]
    assert [case.label for case in cases(1)] != [case.label for case in cases(2)]


def test_the_cuda_librarys_own_operators_get_the_arguments_of_the_same_names(monkeypatch):
    with torch.library._scoped_library("pyprune", "FRAGMENT") as library:
        library.define(
            "probe_linear(Tensor weight, Tensor x, Tensor? norm=None, float eps=0.0, bool wide=False) -> Tensor"
        )

        def probe(weight, x, norm=None, eps=0.0, wide=False):
            assert wide
            return ops.reference.norm_head(x, norm, eps, weight)

        library.impl("probe_linear", probe, "CompositeExplicitAutograd")
        monkeypatch.setattr(judgement, "DIRECT", {"norm_head": ("probe_linear", {"wide": True})})
        twins = [twin for case in cases(0, "tiny", few_rows=True) for twin in direct(case)]
        assert {twin.operator for twin in twins} == {"norm_head"}
        for twin in twins:
            told = check(twin, torch.bfloat16, "cpu", 0)
            assert (told["passed"], told["direct"], told["exception"]) == (True, True, None)


@pytest.mark.parametrize(("values", "passed"), [(judgement.FEW_VALUES - 1, True), (judgement.FEW_VALUES, False)])
def test_of_few_values_pytorch_is_credited_with_half_a_unit_in_the_last_place(monkeypatch, values: int, passed: bool):
    def build(draw: Draw) -> list:  # PyTorch is exact here by chance
        return [torch.ones(1, 1, dtype=torch.float16), torch.ones(values, 1, dtype=torch.float16), None]

    def off(x, w, b):
        result = x @ w.T
        result[0, 0] += step
        return result

    monkeypatch.setattr(ops, "padded_linear", off)
    case, step = Case("padded_linear", "ones", build), torch.finfo(torch.float16).eps
    assert check(case, torch.float16, "cpu", 0)["passed"] == passed
    step *= 2
    assert not check(case, torch.float16, "cpu", 0)["passed"]
