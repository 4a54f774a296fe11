"""Choosing what runs on a GPU, as far as that can be seen without one."""

from __future__ import annotations

import pytest
import torch

from pyprune.errors import InputError
from pyprune.ops import gpu


def test_an_unknown_choice_is_refused_with_the_choices(monkeypatch):
    monkeypatch.setenv("PYPRUNE_GPU", "magic")
    with pytest.raises(InputError, match="PYPRUNE_GPU=magic: one of auto, definitions, triton, cuda"):
        gpu.choose()


def test_kernels_never_run_on_hardware_are_not_chosen_unasked(monkeypatch):
    monkeypatch.delenv("PYPRUNE_GPU", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.warns(UserWarning, match="have not been checked on hardware"):
        gpu.choose()
    assert not gpu.recordable()
    assert gpu.report()["chosen"] == "definitions"


def test_the_cuda_choice_without_its_library_says_what_it_takes(monkeypatch, tmp_path):
    monkeypatch.setenv("PYPRUNE_GPU", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "CUDA_LIBRARY_PATH", tmp_path / "_cuda.so")
    pytest.importorskip("triton")
    with pytest.raises(InputError, match=r"_cuda.so was not built; it takes nvcc"):
        gpu.choose()


@pytest.mark.parametrize(("rows", "expected"), [(1, "cuda"), (2, "cuda"), (3, "other"), (0, "other")])
def test_one_and_two_rows_go_to_the_cuda_library_with_their_arguments(monkeypatch, rows: int, expected: str):
    calls: list[tuple] = []

    class Operators:
        def __getattr__(self, name: str):
            return lambda *args: calls.append(("cuda", name, len(args)))

    monkeypatch.setattr(torch, "ops", type("Ops", (), {"pyprune": Operators()})())
    names = ("norm_gate_up", "linear_residual", "norm_head", "padded_linear")
    others = {name: lambda *args, name=name: calls.append(("other", name, len(args))) for name in names}
    routes = gpu.few_row_routes(others)
    x, w = torch.ones(rows, 1, 8), torch.ones(4, 8)
    routes["norm_gate_up"](x, torch.ones(8), 1e-5, w, w, None, None, None, 0)
    routes["linear_residual"](x, w, None, torch.ones(rows, 1, 4), None, 0)
    routes["norm_head"](x, torch.ones(8), 1e-5, w)
    routes["padded_linear"](x, w)
    assert [place for place, _, _ in calls] == [expected] * 4
