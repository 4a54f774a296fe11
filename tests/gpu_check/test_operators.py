"""The operators' part: a hanging case can be named, and a broken device costs one case."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest

from bench.gpu_check import operators
from bench.gpu_check.settings import Settings
from pyprune import ops


def test_a_case_that_hangs_can_be_named_from_what_was_kept():
    kept = []
    settings = Settings("operators", "", dry_run=True, options={"dtype": "float32"})
    result = operators.run(settings, kept.append)
    assert kept[2]["trying"] == f"float32 {result['cases'][2]['operator']} {result['cases'][2]['case']}"
    assert "trying" not in result


def test_after_a_broken_device_the_next_case_is_tried_in_a_fresh_process(monkeypatch, tmp_path):
    def broken(*_: object) -> None:
        raise RuntimeError("illegal memory access")

    restarted = {}

    def execv(program: str, words: list[str]) -> None:
        restarted.update(json.loads(words[-1]))
        raise SystemExit

    settings = Settings("operators", str(tmp_path / "out.json"), dry_run=True, options={"dtype": "float32"})
    monkeypatch.setattr(ops, "padded_linear", broken)
    monkeypatch.setattr(operators, "_device_works", lambda device: False)
    monkeypatch.setattr(os, "execv", execv)
    kept = []
    with pytest.raises(SystemExit):
        operators.run(settings, lambda result: kept.append(result))
    done = len(kept[-1]["cases"])
    assert restarted["options"] == {"dtype": "float32", "first": done, "restarts": 1}
    # The fresh process goes on with what was kept, and gives up after a few of these.
    (tmp_path / "out.json").write_text(json.dumps({"result": {"cases": kept[-1]["cases"]}}))
    monkeypatch.undo()
    whole = operators.run(Settings(**restarted), lambda result: None)
    assert len(whole["cases"]) == whole["of"]
    assert whole["failed"] == 1
    monkeypatch.setattr(operators, "_device_works", lambda device: False)
    monkeypatch.setattr(ops, "norm_head", broken)
    worn = replace(settings, options={**settings.options, "restarts": operators.MOST_RESTARTS})
    with pytest.raises(RuntimeError, match="were not tried"):
        operators.run(worn, lambda result: None)
