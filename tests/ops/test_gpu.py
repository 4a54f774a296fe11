"""Choosing what runs on a GPU, as far as that can be seen without one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pyprune.errors import InputError
from pyprune.ops import gpu
from pyprune.ops.self_check import passes

STANDING = passes.standing


def test_an_unknown_choice_is_refused_with_the_choices(monkeypatch):
    monkeypatch.setenv("PYPRUNE_GPU", "magic")
    with pytest.raises(InputError, match="PYPRUNE_GPU=magic: one of auto, reference, triton, cuda"):
        gpu.choose()


def test_the_old_name_of_the_reference_is_accepted_with_a_warning(monkeypatch):
    monkeypatch.setenv("PYPRUNE_GPU", "definitions")
    with pytest.warns(DeprecationWarning, match="PYPRUNE_GPU=definitions is now reference"):
        gpu.choose()


@dataclass
class Machine:
    """A machine that says it has these GPUs: their compute capabilities, what the kernels are, what has passed here."""

    capabilities: list[tuple[int, int]]
    taken: dict[str, Callable]
    library: str = ""
    passed: dict[int, str] = field(default_factory=dict)


def has_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: dict[str, Callable] = {
        "is_available": lambda: True, "current_device": lambda: 0, "device_count": lambda: 1,
        "get_device_name": lambda index: f"GPU {index}", "get_device_capability": lambda index: (9, 0),
    }  # fmt: skip
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setattr(gpu.passes, "identity", lambda index: index)
    monkeypatch.setattr(gpu.passes, "standing", lambda here: (None, "not checked"))


@pytest.fixture
def auto(monkeypatch):
    """PYPRUNE_GPU unset; gives what makes the machine, and what is registered."""
    registered: dict[str, Callable] = {}
    monkeypatch.delenv("PYPRUNE_GPU", raising=False)
    has_one_gpu(monkeypatch)
    monkeypatch.setattr(
        gpu, "LIBRARY", SimpleNamespace(impl=lambda name, function, key: registered.update({name: function}))
    )
    for name in ("_named", "_tuning"):
        monkeypatch.setattr(gpu, name, getattr(gpu, name))
    monkeypatch.setattr(gpu, "_choices", {})

    def make(*capabilities: tuple[int, int], **more: Any) -> Machine:
        machine = Machine(list(capabilities), more.pop("taken", {}), **more)

        def load() -> None:
            if machine.library:
                raise InputError(machine.library)

        def standing(index: int) -> tuple[str | None, str]:
            passed = machine.passed.get(index)
            return passed, "" if passed else "the kernels have not been checked on this GPU"

        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(machine.capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: machine.capabilities[index])
        monkeypatch.setattr(gpu.passes, "standing", standing)
        monkeypatch.setattr(gpu, "_load_cuda_library", load)
        monkeypatch.setattr(gpu, "_take", lambda wanted: machine.taken)
        gpu.choose()
        return machine

    return make, registered


def on(index: int) -> torch.device:
    return torch.device("cuda", index)


class OnGPU:
    """Stands for a tensor on a GPU, as far as choosing looks at it."""

    def __init__(self, index: int, dtype: torch.dtype = torch.bfloat16) -> None:
        self.device, self.dtype = on(index), dtype


def test_auto_decides_when_an_operator_first_meets_a_gpu(auto):
    pytest.importorskip("triton")
    make, registered = auto
    calls: list[tuple] = []
    make((9, 0), taken={name: lambda *args, name=name: calls.append((name, args)) for name in gpu.KERNELS})
    assert (gpu._choices, set(registered)) == ({}, set(gpu.KERNELS))
    x = OnGPU(0)
    registered["padded_linear"](x, "weight")
    assert (gpu.choice_for(on(0)).kernels, calls) == ("cuda", [("padded_linear", (x, "weight"))])
    assert gpu.runs_kernels(torch.bfloat16, on(0))
    assert not gpu.runs_kernels(torch.float64, on(0))
    assert gpu.report()["reason"] == "cuda"


def test_a_model_that_is_traced_may_be_the_first_to_ask(auto, monkeypatch):
    pytest.importorskip("triton")
    auto[0]((9, 0), (8, 6))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # the tracer itself would look for it
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    asked = torch.compile(
        lambda x: x + 1 if gpu.runs_kernels(torch.bfloat16, on(0)) else x - 1, backend="eager", fullgraph=True
    )
    assert asked(torch.zeros(1)) == 1
    assert set(gpu._choices) == {0}


def test_auto_takes_triton_where_there_is_no_cuda_library_and_says_why(auto):
    pytest.importorskip("triton")
    auto[0]((9, 0), library="_cuda.so was not built")
    assert gpu.report()["chosen"] == "triton"
    assert "_cuda.so was not built" in gpu.report()["reason"]


NOT_CHECKED = (
    r"plain PyTorch runs on cuda:0 .*the kernels have not been checked on this GPU; run `pyprune doctor --gpu --device "
    r"0` once, and they are used if it passes \(PYPRUNE_GPU=reference silences this\)$"
)


def test_auto_runs_the_reference_on_gpus_that_the_kernels_were_not_checked_on(auto):
    pytest.importorskip("triton")
    auto[0]((8, 6))
    with pytest.warns(UserWarning, match=NOT_CHECKED):
        functions = gpu.choice_for(on(0)).functions
    assert functions is gpu.REFERENCE
    assert not gpu.runs_kernels(torch.bfloat16, on(0))
    assert gpu.report()["chosen"] == "reference"


@pytest.mark.parametrize("library", ["", "_cuda.so was not built"])
def test_auto_takes_the_kernels_on_a_gpu_whose_self_check_passed(auto, library: str):
    pytest.importorskip("triton")
    kernels = "triton" if library else "cuda"
    auto[0]((12, 0), library=library, passed={0: kernels})
    assert gpu.choice_for(on(0)).kernels == kernels
    told = gpu.report()["devices"][0]
    assert told["self_check"] == {"passed": kernels, "why_not": None}
    assert (told["device"], told["name"], told["compute_capability"]) == ("cuda:0", "GPU 0", "12.0")


def test_auto_reads_the_pass_that_doctor_kept(auto, monkeypatch, tmp_path):
    pytest.importorskip("triton")
    here = passes.Identity("NVIDIA GeForce RTX 4090", "8.9", "580.65.06", "2.11.0", "3.6.0", passes.digest())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    auto[0]((8, 9))
    monkeypatch.setattr(passes, "standing", STANDING)
    monkeypatch.setattr(passes, "identity", lambda index: here)
    passes.keep(replace(here, kernels="of before"), "cuda", 300)
    with pytest.warns(
        UserWarning, match=r"the self-check that passed on this GPU was of another version of the kernels; run"
    ):
        assert gpu.choice_for(on(0)).kernels == "reference"
    gpu._choices.clear()
    passes.keep(here, "cuda", 300)
    assert gpu.choice_for(on(0)).kernels == "cuda"


def test_a_pass_of_other_kernels_than_would_run_does_not_count(auto):
    pytest.importorskip("triton")
    auto[0]((8, 6), library="_cuda.so does not load", passed={0: "cuda"})
    with pytest.warns(UserWarning, match="passed on this GPU was of cuda, and triton would run"):
        assert gpu.choice_for(on(0)).kernels == "reference"


@pytest.mark.parametrize("chosen", ["cuda", "triton"])
def test_only_a_recording_tells_the_cuda_library_that_kernels_may_start_early(chosen, monkeypatch):
    told: list[int] = []
    monkeypatch.setattr(gpu.ctypes, "CDLL", lambda path: SimpleNamespace(pyprune_cuda_record=told.append))
    monkeypatch.setattr(gpu, "_named", chosen)
    during: list[int] = []

    def record() -> None:
        with gpu.recording(on(0)):
            during.extend(told)
            raise KeyError

    with pytest.raises(KeyError):
        record()
    assert during == ([1] if chosen == "cuda" else [])
    assert told == ([1, 0] if chosen == "cuda" else [])


def test_the_report_tells_what_is_wrong_instead_of_failing(auto, monkeypatch):
    pytest.importorskip("triton")
    auto[0]((9, 0))

    def refuse(wanted: str) -> None:
        raise InputError("tuning.json: is not of format")

    monkeypatch.setattr(gpu, "_take", refuse)
    assert gpu.report()["reason"] == "no operator runs: tuning.json: is not of format"
    assert gpu.report()["chosen"] is None


def test_each_of_several_gpus_has_a_choice_of_its_own(auto):
    pytest.importorskip("triton")
    make, registered = auto
    calls: list[str] = []
    make(
        (9, 0), (8, 6), (8, 9), passed={2: "cuda"},
        taken={name: lambda *args: calls.append("kernel") for name in gpu.KERNELS},
    )  # fmt: skip
    with pytest.warns(UserWarning, match="runs on cuda:1") as warned:
        told = gpu.report()["devices"]
    assert [(one["device"], one["chosen"]) for one in told] == [
        ("cuda:0", "cuda"), ("cuda:1", "reference"), ("cuda:2", "cuda")
    ]  # fmt: skip
    assert len(warned) == 1
    for index, expected in ((0, ["kernel"]), (2, ["kernel"])):
        calls.clear()
        registered["norm_head"](OnGPU(index))
        assert calls == expected
    assert gpu.choice_for(on(1)).functions is gpu.REFERENCE
    assert gpu.runs_kernels(torch.float16, on(2))
    assert not gpu.runs_kernels(torch.float16, on(1))


def test_auto_leaves_float64_to_the_reference(auto):
    pytest.importorskip("triton")
    make, registered = auto
    make((9, 0))
    gpu._choices[0] = gpu.Choice("cuda")  # without functions: they are not asked
    x, weight = torch.randn(3, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    torch.testing.assert_close(registered["padded_linear"](x, weight), x @ weight.T)


def test_the_cuda_choice_without_its_library_says_what_it_takes(monkeypatch, tmp_path):
    monkeypatch.setenv("PYPRUNE_GPU", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "CUDA_LIBRARY_PATH", tmp_path / "_cuda_0.so")
    pytest.importorskip("triton")
    with pytest.raises(InputError, match=r"_cuda_0.so was not built; it takes nvcc"):
        gpu.choose()


@pytest.fixture
def with_triton(monkeypatch, tmp_path):
    """PYPRUNE_GPU=triton on a machine that says it has a GPU; what is registered is told and not done."""
    pytest.importorskip("triton")
    from pyprune.triton_kernels import tuning

    registered: list[str] = []
    monkeypatch.setenv("PYPRUNE_GPU", "triton")
    monkeypatch.setenv("PYPRUNE_TUNING", str(tmp_path / "tuning.json"))
    has_one_gpu(monkeypatch)
    monkeypatch.setattr(gpu, "LIBRARY", SimpleNamespace(impl=lambda name, *_: registered.append(name)))
    for module, name in ((gpu, "_named"), (gpu, "_tuning"), (tuning, "_loaded")):
        monkeypatch.setattr(module, name, getattr(module, name))
    return tmp_path / "tuning.json", registered


def test_a_kernel_that_its_operator_does_not_name_is_an_error_and_none_of_it_runs(with_triton, monkeypatch):
    from pyprune.triton_kernels import registration

    _, registered = with_triton
    monkeypatch.delitem(registration.OPERATORS, "norm_head")
    with pytest.raises(RuntimeError, match=r"^norm_head: in triton_kernels/registration\.py or marked"):
        gpu.choose()
    assert registered == []


def test_a_tuning_file_that_is_not_sound_is_refused_before_anything_is_registered(with_triton):
    file, registered = with_triton
    file.write_text("{}")
    with pytest.raises(InputError, match=r"tuning\.json: is not of format"):
        gpu.choose()
    assert registered == []


def test_the_kernels_run_with_the_fixed_table_where_nothing_was_tuned_and_the_report_tells(with_triton):
    file, registered = with_triton
    gpu.choose()
    assert sorted(registered) == sorted(gpu.KERNELS)
    assert gpu.report()["tuning"] == {"file": str(file), "loaded": 0}
    assert gpu.report()["reason"] == "triton"


def test_what_was_tuned_is_loaded_and_told(with_triton):
    from pyprune.triton_kernels import tuning
    from pyprune.triton_kernels.candidates import candidates
    from pyprune.triton_kernels.configs import SM_90, Shape

    file, _ = with_triton
    shape = Shape(1, 8192, 4096)
    key = tuning.Key(tuning.Machine("a GPU", 90, "3.7.1"), "norm_gate_up", "bfloat16", shape)
    config = candidates("norm_gate_up", torch.bfloat16, shape, SM_90)[1]
    tuning.write(file, {key: tuning.Tuned(config, 1e-6, 2e-6)})
    gpu.choose()
    assert gpu.report()["tuning"] == {"file": str(file), "loaded": 1}
    assert f"1 configurations from {file}" in str(gpu.report()["reason"])


@pytest.mark.parametrize("there", [False, True])
def test_what_takes_the_triton_kernels_is_told_what_is_missing(monkeypatch, there: bool):
    from pyprune import triton_kernels

    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(triton_kernels, "available", lambda: False)
    monkeypatch.setattr(triton_kernels, "why_not", lambda: "Triton is not installed")
    with pytest.raises(
        InputError, match=r"^tune: Triton is not" if there else r"^tune: no GPU that this torch can use"
    ):
        gpu.require_triton("tune")


@pytest.mark.parametrize(("rows", "expected"), [(1, "cuda"), (2, "cuda"), (3, "other"), (0, "other")])
def test_one_and_two_rows_go_to_the_cuda_library_with_their_arguments(monkeypatch, rows: int, expected: str):
    calls: list[tuple] = []

    class Operators:
        def __getattr__(self, name: str):
            return lambda *args: calls.append(("cuda", name, len(args)))

    monkeypatch.setattr(torch, "ops", type("Ops", (), {"pyprune": Operators()})())
    names = ("norm_qkv_rope", "norm_gate_up", "linear_residual", "norm_head", "padded_linear")
    others = {name: lambda *args, name=name: calls.append(("other", name, len(args))) for name in names}
    routes = gpu.skinny_routes(others)
    x, w = torch.ones(rows, 1, 8), torch.ones(4, 8)
    routes["norm_gate_up"](x, torch.ones(8), 1e-5, w, w, None, None, None, 0)
    routes["linear_residual"](x, w, None, torch.ones(rows, 1, 4), None, 0)
    routes["norm_head"](x, torch.ones(8), 1e-5, w)
    routes["padded_linear"](x, w)
    qkv(routes, x, torch.ones(4, 8))
    assert [place for place, _, _ in calls] == [expected] * 5
    assert calls[-1] == ((expected, "cuda_norm_qkv_rope", 17) if expected == "cuda" else ("other", "norm_qkv_rope", 19))


def qkv(routes, x, weight, norm=None, dtype=torch.float32):
    """One head of size 4 for each of the three."""
    cache, table, places = torch.ones(3, 1, 5, 4, dtype=dtype), torch.ones(5, 2), torch.zeros(len(x), 1)
    routes["norm_qkv_rope"](
        x, torch.ones(8), 1e-5, weight, weight, weight, None, None, None, norm, None, table, table, places, cache,
        cache, None, 0, None,
    )  # fmt: skip


def test_projections_that_the_cuda_library_does_not_take_go_elsewhere(monkeypatch):
    calls: list[str] = []

    class Operators:
        def __getattr__(self, name: str):
            return lambda *args: calls.append(name)

    monkeypatch.setattr(torch, "ops", type("Ops", (), {"pyprune": Operators()})())
    others = {name: lambda *args: calls.append("other") for name in ("norm_qkv_rope",)}
    others |= dict.fromkeys(("norm_gate_up", "linear_residual", "norm_head", "padded_linear"))
    routes, x = gpu.skinny_routes(others), torch.ones(1, 1, 8)
    store = torch.ones(5 * 9 + 4)
    qkv(routes, x, torch.ones(4, 8), norm=torch.ones(4))  # a q/k-norm
    qkv(routes, x, torch.ones(4, 8), dtype=torch.float16)  # a cache of another dtype
    qkv(routes, x, torch.ones(4, 9)[:, :8])  # rows that do not start on 16 bytes
    qkv(routes, x, store[1:33].view(4, 8))
    qkv(routes, x, store[4:36].view(4, 8))
    assert calls == ["other"] * 4 + ["cuda_norm_qkv_rope"]
