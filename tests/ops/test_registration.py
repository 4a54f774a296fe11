"""The operators as torch sees them: schemas, tracing, and what happens without the library."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from pyprune import ops
from pyprune.errors import InputError
from pyprune.ops.operators import CUDA_OPERATORS, OPERATORS
from pyprune.ops.reference import REFERENCE
from pyprune.ops.results import rows_to_project
from pyprune.ops.schemas import SCHEMAS
from tests import seeds
from tests.fresh import run_fresh, run_to_its_end
from tests.library import FORCED, needs_library
from tests.ops.attention_inputs import CASES, poisoned, qkv_arguments
from tests.ops.inputs import norm, random, weight
from tests.ops.test_step import step_arguments


def arguments(name: str, rows: int) -> tuple:
    x, w, n = random(rows, 61), weight(37, 61, torch.bfloat16), norm(61, torch.bfloat16)
    case = CASES[2] if rows > 64 else CASES[1]
    keys, values = (poisoned(case, torch.float32).nan_to_num(0.5) for _ in range(2))
    qkv = qkv_arguments(case, torch.float32, True)
    q = random(case[0], case[1], case[2], case[4])
    together = (
        random(rows, 4, 10),
        random(2, rows, 10),
        random(2, rows, 10),
        torch.tensor([[1, 0, 0], [rows - 1, 0, 1]]),
    )
    queries, slope, out = (random(2, 4, rows, 6) for _ in range(3))
    sequences, sums = [random(2, 2, rows, 6) for _ in range(4)], random(2, 4, rows) + 3
    return {
        "norm_qkv_rope": (*qkv, keys, values),
        "decode_attention": (q, keys, values, qkv[-1], 0.3),
        "shared_prefix_attention": (*together, 0.3),
        "linear_residual": (x, w, None, random(rows, 37)),
        "norm_gate_up": (x, n, 1e-5, w, weight(37, 61, torch.bfloat16), None, None),
        "norm_head": (x, n, 1e-5, w),
        "linear_cross_entropy": (x, w, torch.randint(0, 37, (rows,)), n, 1e-5),
        "causal_attention": (queries, *sequences[:2], 0.3, torch.zeros(2, 4, rows)),
        "causal_attention_backward": (
            slope,
            queries,
            *sequences[:2],
            out,
            sums,
            0.3,
            torch.zeros_like(out),
            *sequences[2:],
        ),
        "cross_entropy_gradient": (random(rows, 61), torch.randint(0, 61, (rows,))),
        "low_rank_project": (x, random(5, 61), 3, 0.1),
        "low_rank_add": (x.clone(), random(rows, 5), random(5, 61), 3, 0.1),
        "low_rank_gradient": (random(rows, 5), x, 3, 0.1),
        "padded_linear": (x, w, random(37, dtype=torch.bfloat16)),
        "compress_bfloat16": (w,),
        "decompress_bfloat16": (ops.compress_bfloat16(w), 61),
        "dequantize_gguf": ((torch.arange(rows * 36) % 100).to(torch.uint8), 2, torch.empty(rows, 64)),
        "decode_step": tuple(step_arguments(min(rows, 64), torch.bfloat16, torch.arange(min(rows, 64)))),
    }[name]


def test_every_operator_is_described_in_a_file_of_its_name():
    assert {**OPERATORS, **CUDA_OPERATORS}.keys() == SCHEMAS.keys()
    for name, operator in {**OPERATORS, **CUDA_OPERATORS}.items():
        assert operator.schema == SCHEMAS[name]
        assert set(operator.kernels) <= {"cpu", "gpu"}
    assert set(REFERENCE) == set(OPERATORS)


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_the_reference_has_the_schemas_arguments_and_defaults(name: str):
    parameters = inspect.signature(REFERENCE[name]).parameters
    arguments = getattr(torch.ops.pyprune, name).default._schema.arguments
    assert [argument.name for argument in arguments] == list(parameters)
    for argument in arguments:
        default = parameters[argument.name].default
        assert argument.has_default_value() == (default is not inspect.Parameter.empty)
        assert not argument.has_default_value() or argument.default_value == default


@needs_library
def test_the_library_has_kernels_of_the_operators_that_are_said_to_have_some():
    of_cpu = [name for name in OPERATORS if torch._C._dispatch_has_kernel_for_dispatch_key(f"pyprune::{name}", "CPU")]
    assert of_cpu == [name for name, operator in OPERATORS.items() if "cpu" in operator.kernels]


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_opcheck(name: str):
    torch.manual_seed(seeds.seed())
    torch.library.opcheck(getattr(ops, name), arguments(name, 4))


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_opcheck_of_many_rows(name: str):
    """What depends on the kernel that runs: what it writes and returns. The registration is that of few rows."""
    torch.manual_seed(seeds.seed())
    checked = torch.library.opcheck(
        getattr(ops, name), arguments(name, 70), test_utils=("test_schema", "test_faketensor")
    )
    assert set(checked.values()) == {"SUCCESS"}


def changed(value, change):
    """`value`, or each item of a list, with `change` made to those that are tensors."""
    if isinstance(value, (list, tuple)):
        return [changed(one, change) for one in value]
    return change(value) if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_without_values_the_dtype_is_that_of_the_reference(name: str, dtype: torch.dtype):
    torch.manual_seed(seeds.seed())
    if name == "compress_bfloat16":
        pytest.skip("its input has one dtype, and the size of its result depends on values")
    if name in ("dequantize_gguf", "low_rank_add", "causal_attention_backward"):
        pytest.skip("it gives nothing: what it writes has the dtype of its argument")
    args = changed(arguments(name, 4), lambda one: one.to(dtype) if one.is_floating_point() else one)
    traced = getattr(ops, name)(*changed(args, lambda one: one.to("meta")))
    if (name, dtype) == ("decode_step", torch.float64):  # its reference calls the others, and the library's refuse it
        assert traced.dtype == dtype
    else:
        expected = REFERENCE[name](*args)
        assert (traced.dtype, traced.shape) == (expected.dtype, expected.shape)


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_traces_under_compile_without_a_break(name: str):
    torch.manual_seed(seeds.seed())
    torch._dynamo.reset()  # one function for all operators would be compiled anew too often
    args = arguments(name, 4)

    def twice(*args):
        result = getattr(ops, name)(*args)
        wrote = args[0] if name == "low_rank_add" else args[-1]
        return 2 * (wrote if result is None else result)  # what it wrote, where it gives nothing

    compiled = torch.compile(twice, backend="eager", fullgraph=True)
    again = changed(args, torch.clone)  # some write to their arguments
    assert torch.equal(compiled(*args), twice(*again))


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Nothing is forced but what `environment` says."""
    inherited = {name: value for name, value in os.environ.items() if name not in FORCED}
    return run_to_its_end(code, {**inherited, **environment})


@pytest.mark.slow
def test_without_the_library_the_reference_run():
    code = (
        "import torch\nfrom pyprune import ops\nassert ops.native.selected_isa() is None\n"
        "x, w = torch.randn(3, 5), torch.randn(7, 5)\n"
        "torch.testing.assert_close(ops.padded_linear(x, w), x @ w.T)\nprint(ops.native.report()['reason'])"
    )
    done = run(code, PYPRUNE_NATIVE="0")
    assert done.returncode == 0, done.stderr
    assert "PYPRUNE_NATIVE=0" in done.stdout
    assert "Warning" not in done.stderr


@pytest.mark.slow
@needs_library
def test_a_missing_library_warns_once_and_says_what_to_do(tmp_path: Path):
    package = Path(ops.__file__).parents[1]
    shutil.copytree(package, tmp_path / "pyprune", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    code = "import pyprune; from pyprune.ops import native; print(native.report()['remedy'])"
    done = run(code, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("NativeLibraryWarning: ") == 1
    assert "g++" in done.stderr
    assert "g++" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ops.native.runnable_isas())
def test_the_environment_forces_an_instruction_set(name: str):
    done = run("from pyprune import ops; print(ops.native.selected_isa())", PYPRUNE_ISA=name)
    assert done.stdout.strip() == name, done.stderr


@needs_library
def test_an_instruction_set_that_is_not_here_is_refused_with_the_choices():
    with pytest.raises(InputError, match=r"'mmx'.*portable.* is expected"):
        ops.native.select_isa("mmx")


@pytest.mark.slow
@needs_library
def test_the_default_is_the_best_that_runs_here():
    code = "from pyprune.ops import native; print(native.selected_isa())"
    expected = next(name for name in ops.native.ISAS if name in ops.native.runnable_isas())
    environment = {name: value for name, value in os.environ.items() if name != "PYPRUNE_ISA"}
    assert run_fresh(code, environment).strip() == expected


@pytest.mark.slow
@needs_library
def test_a_wrong_instruction_set_in_the_environment_is_refused_at_every_import():
    code = (
        "from pyprune.errors import InputError\n"
        "for _ in range(2):\n"
        "    try:\n        import pyprune.ops\n        print('accepted')\n"
        "    except InputError as error:\n        print(error)\n"
    )
    done = run(code, PYPRUNE_ISA="mmx")
    assert done.stdout.count("'mmx'") == 2, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("PYPRUNE_ISA", "portable", "instruction set 'portable': the CPU library is not loaded (switched off by "),
        ("PYPRUNE_GEMM", "cublas", "GEMM 'cublas': one of auto, own, torch is expected"),
    ],
)
def test_what_is_forced_without_the_library_is_refused_at_every_import(variable: str, value: str, expected: str):
    code = (
        "from pyprune.errors import InputError\n"
        "for _ in range(2):\n"
        "    try:\n        import pyprune.ops\n        print('accepted')\n"
        "    except InputError as error:\n        print(error)\n"
    )
    done = run(code, PYPRUNE_NATIVE="0", **{variable: value})
    assert done.stdout.count(expected) == 2, done.stdout + done.stderr


def test_a_skipped_sublayer_traces_like_any_other():
    x, w, residual = random(4, 61), weight(37, 61, torch.float32), random(37, 4).T
    torch.library.opcheck(ops.linear_residual, (x, w, None, residual, torch.tensor([True]), 0))
    torch.library.opcheck(ops.linear_residual, (x, w, None, residual, torch.tensor([False]), 0))


@pytest.mark.slow
def test_the_whole_road_runs_without_the_library():
    code = (
        "import torch, pyprune\n"
        "model = pyprune.load('shape:hidden=32,blocks=3,heads=2,kv_heads=1,head_dim=16,ffn=40,vocab=60')\n"
        "ids = torch.randint(0, 60, (2, 20), generator=torch.Generator().manual_seed(0))\n"
        "print(pyprune.score(model, ids).values, pyprune.Engine(model, 2, 40).generate(ids, max_new_tokens=9).tolist())"
    )
    plain = run(code, PYPRUNE_NATIVE="0")
    assert plain.returncode == 0, plain.stderr
    with contextlib.redirect_stdout(io.StringIO()) as native:  # with it, in this process
        exec(code, {})
    both = plain.stdout, native.getvalue()
    scores = [[float(v) for v in printed.split("]")[0].strip("[").split(",")] for printed in both]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)
    assert both[0].split("] ")[1] == both[1].split("] ")[1]


class OnGpu:
    """As much of a tensor on a GPU as the fakes of results look at; what they make is on the CPU."""

    device = torch.device("cuda")
    dtype = torch.bfloat16

    @staticmethod
    def new_empty(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, dtype=torch.bfloat16)


@pytest.mark.parametrize(("kernels", "stride"), [(True, 7168), (False, 7155)])
def test_tracing_knows_how_far_apart_the_rows_of_a_result_are_on_a_gpu(kernels, stride, monkeypatch):
    # What a compiler is told has to be what the Triton and CUDA kernels give; the reference's results are contiguous.
    monkeypatch.setattr(ops.gpu, "runs_kernels", lambda dtype, device: kernels)
    made = rows_to_project(OnGpu(), 2, 3, 7155)
    assert (made.shape, made.stride()) == ((2, 3, 7155), (3 * stride, stride, 1))
    assert rows_to_project(OnGpu(), 2, 7160).is_contiguous()
    assert rows_to_project(torch.empty(2, 5), 2, 7).is_contiguous()
