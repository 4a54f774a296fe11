"""Recorded steps against plain PyTorch: what is wrong in the engine's step, or in its mask, is found."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import pyprune
from bench.gpu_check import steps
from bench.gpu_check.settings import Settings
from pyprune.models.transformers_model import to_transformers
from pyprune.ops.self_check.judgement import count
from pyprune.runtime.skip import SkipPlan, skip_plan

SETTINGS = Settings("steps", "", dry_run=True)


@pytest.fixture(scope="module")
def decoder():
    shape = steps.DRY_SHAPES["odd heads, odd width"]
    return pyprune.load(f"shape:{shape}", dtype=torch.bfloat16)


def test_the_reference_is_transformers_own_forward(decoder):
    wide = decoder.to(torch.float32)
    ids = torch.randint(0, decoder.vocab_size, (2, 11))
    with torch.inference_mode():
        theirs = to_transformers(wide)(ids).logits
        mine = steps.plain_logits(wide, ids, torch.zeros(3, 2, dtype=torch.bool), torch.float64)
    torch.testing.assert_close(mine.float(), theirs, rtol=1e-4, atol=1e-4)


def test_every_way_of_leaving_out_passes_at_prompts_of_different_lengths(decoder):
    cases = steps.compared(decoder, 4, SETTINGS)
    assert [case["left_out"] for case in cases] == list(steps.ways(3, "cpu"))
    assert count(cases) == {"passed": len(cases), "failed": 0}
    assert cases[-1]["same_bits_twice"] is True


def test_a_mask_that_is_not_heeded_fails(decoder, monkeypatch):
    def unheeded(model, skip=None) -> SkipPlan:
        plan = skip_plan(model, skip)
        return plan if plan.device_mask is None else replace(plan, device_mask=torch.zeros(6, dtype=torch.bool))

    monkeypatch.setattr("pyprune.runtime.engine.skip_plan", unheeded)
    failed = {case["left_out"] for case in steps.compared(decoder, 2, SETTINGS) if not case["passed"]}
    assert failed == {"a block, by a mask", "two halves, by a mask", "a block, by a mask again"}


def test_a_mask_that_stays_from_the_batch_before_fails(decoder, monkeypatch):
    kept: list[torch.Tensor] = []

    def first_one(model, skip=None) -> SkipPlan:
        plan = skip_plan(model, skip)
        if plan.device_mask is None:
            return plan
        kept.append(plan.device_mask)
        return replace(plan, device_mask=kept[0])

    monkeypatch.setattr("pyprune.runtime.engine.skip_plan", first_one)
    failed = {case["left_out"] for case in steps.compared(decoder, 1, SETTINGS) if not case["passed"]}
    assert failed == {"a clear mask", "two halves, by a mask"}


def test_logits_that_are_too_inexact_fail(decoder, monkeypatch):
    right = steps.generated
    monkeypatch.setattr(steps, "generated", lambda *args: right(*args) * 1.02)
    assert not any(case["passed"] for case in steps.compared(decoder, 1, SETTINGS))


def test_logits_without_a_value_fail(decoder, monkeypatch):
    right = steps.generated
    monkeypatch.setattr(steps, "generated", lambda *args: right(*args) + float("nan"))
    assert not any(case["passed"] for case in steps.compared(decoder, 1, SETTINGS))


def test_an_engine_that_breaks_is_told_and_the_next_way_is_tried(decoder, monkeypatch):
    right, turns = steps.generated, []

    def broken(*args):
        turns.append(1)
        if len(turns) == 2:
            raise RuntimeError("illegal memory access")
        return right(*args)

    monkeypatch.setattr(steps, "generated", broken)
    cases = steps.compared(decoder, 1, SETTINGS)
    assert [case["passed"] for case in cases] == [True, False, True, True, True, True]
    assert cases[1]["exception"] == "RuntimeError: illegal memory access"


def test_a_step_that_should_be_recorded_and_was_not_fails(decoder, monkeypatch):
    class Unrecorded(pyprune.Engine):
        def _run(self, tokens, positions):
            self._record = object()
            return self._step(tokens, positions)

    monkeypatch.setattr(pyprune, "Engine", Unrecorded)
    assert not any(case["passed"] for case in steps.compared(decoder, 1, SETTINGS))
