"""The file of self-checks that passed: what it holds for, and that nothing else is believed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pyprune.ops.self_check import passes
from pyprune.ops.self_check.passes import Identity

HERE = Identity("NVIDIA GeForce RTX 3090", "8.6", "580.65.06", "2.11.0", "3.6.0", "0123abcd")
OTHER = replace(HERE, gpu="NVIDIA B200", compute_capability="10.0")
NEVER = (None, "the kernels have not been checked on this GPU")


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_a_pass_holds_for_its_gpu_alone_and_can_be_taken_back():
    assert passes.standing(HERE) == NEVER
    passes.forget(HERE)
    assert not passes.location().exists()
    passes.keep(HERE, "triton", 100)
    passes.keep(OTHER, "cuda", 90)
    assert (passes.standing(HERE), passes.standing(OTHER)) == (("triton", ""), ("cuda", ""))
    passes.keep(HERE, "cuda", 101)
    assert passes.standing(HERE) == ("cuda", "")
    assert len(json.loads(passes.location().read_text())["passes"]) == 2
    passes.forget(HERE)
    assert (passes.standing(HERE), passes.standing(OTHER)) == (NEVER, ("cuda", ""))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"driver": "590.1"}, "was of another driver 580.65.06, now 590.1"),
        ({"torch": "2.12.0"}, "was of another torch 2.11.0, now 2.12.0"),
        ({"triton": "3.7.0"}, "was of another Triton 3.6.0, now 3.7.0"),
        ({"compute_capability": "8.9"}, "was of another compute capability 8.6, now 8.9"),
        ({"kernels": "other"}, "was of another version of the kernels"),
        ({"kernels": "other", "torch": "2.12.0"}, "was of another torch 2.11.0, now 2.12.0, version of the kernels"),
    ],
)
def test_a_pass_of_something_else_is_stale_and_what_changed_is_told(change: dict, told: str):
    passes.keep(HERE, "cuda", 100)
    passed, why = passes.standing(replace(HERE, **change))
    assert passed is None
    assert told in why


def test_a_changed_entry_is_ignored_with_the_reason_and_replaced_by_the_next_pass():
    passes.keep(replace(HERE, driver="1"), "cuda", 100)
    text = passes.location().read_text()
    for old, new in (('"1"', '"580.65.06"'), ('"cuda"', '"triton"'), ("100", "7")):
        passes.location().write_text(text.replace(old, new))
        passed, why = passes.standing(HERE)
        assert passed is None
        assert why.endswith("entry 1 is not as `pyprune doctor --gpu` wrote it"), why
    passes.keep(HERE, "cuda", 100)
    assert passes.standing(HERE) == ("cuda", "")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": "pyprune-gpu-self-check/0", "passes": []}', '{"passes": 1}']
)
def test_a_file_that_is_none_is_ignored_with_the_reason(text: str):
    passes.keep(HERE, "cuda", 100)
    passes.location().write_text(text)
    passed, why = passes.standing(HERE)
    assert passed is None
    assert str(passes.location()) in why
    passes.forget(HERE)  # leaves a sound file
    assert passes.standing(HERE) == NEVER


def test_the_digest_changes_with_a_kernel_and_with_the_cuda_library(monkeypatch, tmp_path):
    from pyprune import triton_kernels

    folder = tmp_path / "kernels"
    folder.mkdir()
    (folder / "attention.py").write_text("a = 1\n")
    monkeypatch.setattr(triton_kernels, "__path__", [str(folder)])
    monkeypatch.setattr(passes, "CUDA_LIBRARY_PATH", tmp_path / "_cuda.so")
    seen = [passes.digest()]
    (folder / "attention.py").write_text("a = 2\n")
    seen.append(passes.digest())
    (folder / "loss.py").write_text("")
    seen.append(passes.digest())
    (tmp_path / "_cuda.so").write_bytes(b"1")
    seen.append(passes.digest())
    (tmp_path / "_cuda.so").write_bytes(b"2")
    seen.append(passes.digest())
    assert len(set(seen)) == 5
    assert passes.digest() == seen[-1]
