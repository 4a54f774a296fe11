"""Tuned configurations without a GPU: which are tried, how one is chosen, the file, and what a launch takes from it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch
from torch import Tensor

from pyprune import triton_kernels
from pyprune.errors import InputError
from pyprune.models import load_sizes

if not triton_kernels.available():
    pytest.skip(str(triton_kernels.why_not()), allow_module_level=True)

from pyprune.study import kernel_tuning
from pyprune.study.tuning_cases import Case, cases
from pyprune.triton_kernels import configs, launch, timing, tuning
from pyprune.triton_kernels.candidates import candidates
from pyprune.triton_kernels.configs import SM_86, SM_90, AttentionTile, Shape, Tile

CPU = torch.device("cpu")
HALF = torch.bfloat16
LINEAR = Shape(16, 16384, 4096)
HERE = tuning.Machine("NVIDIA H100", 90, "3.7.1")


def key(operator: str = "norm_gate_up", shape: Shape = LINEAR, machine: tuning.Machine = HERE) -> tuning.Key:
    return tuning.Key(machine, operator, "bfloat16", shape)


def some_tuning() -> dict[tuning.Key, tuning.Tuned]:
    linear = candidates("norm_gate_up", HALF, LINEAR, SM_90)
    shape = Shape(1, 2048, 128)
    attention = candidates("decode_attention", HALF, shape, SM_90)
    return {
        key(): tuning.Tuned(linear[3], 1.5e-5, 2e-5),
        key("decode_attention", shape): tuning.Tuned(attention[-1], 3e-6, 3e-6),
    }


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv(tuning.VARIABLE, str(tmp_path / "tuning.json"))
    monkeypatch.setattr(tuning, "_loaded", {})
    return tmp_path / "tuning.json"


# --- candidates ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", [SM_86, SM_90], ids=lambda arch: arch.name)
@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
def test_candidates_are_several_distinct_and_begin_with_the_fixed_configuration(arch, dtype):
    for operator in ("norm_qkv_rope", "linear_residual"):
        for rows in (1, 2, 16, 32, 64):
            tiles = candidates(operator, dtype, Shape(rows, 8192, 4096), arch)
            assert tiles[0] == configs.skinny_tile(arch, rows, dtype, operator == "norm_qkv_rope")
            assert len(set(tiles)) == len(tiles) >= 5
            assert {tile.block_m for tile in tiles} == {rows}
    tiles = candidates("decode_attention", dtype, Shape(1, 2048, 64), arch)
    assert tiles[0] == configs.attention_tile(arch, 1, 64, dtype, split=True)
    assert len(set(tiles)) == len(tiles) >= 5
    gemm = configs.widened(arch.gemm, dtype)
    assert candidates("linear_cross_entropy", dtype, Shape(gemm.block_m, 32768, 4096), arch)[0] == gemm


@pytest.mark.parametrize(
    ("operator", "rows"), [("norm_gate_up", 3), ("norm_gate_up", 128), ("linear_cross_entropy", 1), ("softmax", 1)]
)
def test_a_class_that_no_launch_has_is_not_tuned(operator, rows):
    with pytest.raises(ValueError, match=r"is not tuned|are not a class"):
        candidates(operator, HALF, Shape(rows, 8192, 4096), SM_90)


def test_the_cases_of_a_model_are_the_classes_of_its_launches_each_once():
    decoder = load_sizes("shape:llama-1b")
    distinct = cases(decoder, SM_90)
    assert len({(case.operator, case.shape) for case in distinct}) == len(distinct)
    shapes = {
        operator: [c.shape for c in distinct if c.operator == operator] for operator in {c.operator for c in distinct}
    }
    assert shapes["norm_gate_up"] == [Shape(rows, 8192, 2048) for rows in (1, 2, 16, 32, 64)]
    assert {(s.columns, s.inner) for s in shapes["linear_residual"]} == {(2048, 2048), (2048, 8192)}  # o, down
    assert shapes["norm_head"][0] == Shape(1, 131072, 2048)
    assert shapes["decode_attention"] == [Shape(16, length, 64) for length in (512, 2048, 8192)]  # 4 heads, padded
    assert shapes["linear_cross_entropy"] == [Shape(128, 131072, 2048)]
    for case in distinct:
        assert candidates(case.operator, case.dtype, case.shape, SM_90)


# --- choosing -----------------------------------------------------------------------------------------------------

FIXED, SLOW, QUICK, WRONG, BROKEN, SPILLING = (Tile(1, block_n, 64, 4, 1) for block_n in (8, 1, 2, 4, 16, 32))


def test_the_least_median_wins_whatever_the_outliers():
    tuned = kernel_tuning.quickest({FIXED: [3.0, 3.0, 9.0], QUICK: [2.0, 2.0, 99.0], SLOW: [4.0, 1.0, 4.0]}, FIXED)
    assert tuned == tuning.Tuned(QUICK, 2.0, 3.0)


def test_a_gain_within_the_noise_keeps_the_fixed_configuration():
    assert kernel_tuning.quickest({FIXED: [1.0], QUICK: [0.985]}, FIXED) == tuning.Tuned(FIXED, 1.0, 1.0)
    assert kernel_tuning.quickest({FIXED: [1.0], QUICK: [0.97]}, FIXED) == tuning.Tuned(QUICK, 0.97, 1.0)


class Operator:
    """Gives what the configuration that is being tried would: some give something wrong, fail, or spill."""

    def __init__(self) -> None:
        self.cache = torch.zeros(3)
        self.calls: list[Tile] = []

    def prepare(self, device: torch.device) -> tuple:
        assert device == CPU
        return self.run, [self.cache]

    def run(self) -> Tensor:
        config = launch._tried
        self.calls.append(config)
        if config == BROKEN:
            raise RuntimeError("out of shared memory")
        if config == SPILLING:
            launch._spills.append(6)
        if config != WRONG:
            self.cache.copy_(torch.arange(3.0))  # the wrong one forgets its cache
        return torch.full((2, 2), 1.0 + 1e-6 * config.block_n)

    def case(self) -> Case:
        return Case("linear_residual", torch.float32, LINEAR, self.prepare)


def test_only_what_works_agrees_and_spills_nothing_is_timed():
    operator, timed = Operator(), []

    def time(runs) -> dict:
        timed.extend(runs)
        for run in runs.values():
            run()
        return {config: [float(config.block_n)] for config in runs}

    finding = kernel_tuning.measure(operator.case(), [FIXED, SLOW, QUICK, WRONG, BROKEN, SPILLING], CPU, time)
    assert timed == [FIXED, SLOW, QUICK]
    assert operator.calls[-3:] == timed, "what is timed runs with its own configuration"
    assert finding.tuned == tuning.Tuned(SLOW, 1.0, 8.0)
    assert finding.timed == 3
    assert {config.block_n: why for config, why in finding.refused.items()} == {
        4: "its result differs from the fixed configuration's",
        16: "RuntimeError: out of shared memory",
        32: "spills 6 words a thread",
    }
    assert finding.refusals()[1]["config"] == asdict(BROKEN)
    assert launch._tried is None


@pytest.mark.parametrize(
    ("values", "expected", "same"),
    [
        ([1.0, 2.0], [1.0, 2.0001], True),
        ([1.0, 2.0], [1.0, 2.001], False),
        ([1.0, float("nan")], [1.0, 2.0], False),
        ([1.0, float("inf")], [1.0, 2.0], False),
        ([1.0], [1.0, 2.0], False),
    ],
)
def test_results_agree_within_the_order_of_summation(values, expected, same):
    assert kernel_tuning.agree(torch.tensor(values), torch.tensor(expected)) is same
    assert kernel_tuning.agree(torch.tensor(values, dtype=HALF), torch.tensor(expected, dtype=HALF)) is (
        same or values[-1] == 2.0
    )


def test_all_cases_are_measured_and_reported():
    reported = []
    todo = [Operator().case(), replace(Operator().case(), operator="norm_head")]
    time = lambda runs: {config: [1.0] for config in runs}  # noqa: E731
    findings = kernel_tuning.tune(todo, SM_90, CPU, time, lambda done, total: reported.append((done, total)))
    assert reported == [(1, 2), (2, 2)]
    assert list(kernel_tuning.entries(findings, HERE)) == [
        tuning.Key(HERE, operator, "float32", LINEAR) for operator in ("linear_residual", "norm_head")
    ]


def test_every_run_is_timed_once_a_round_after_one_round_not_counted():
    calls: list[str] = []
    runs = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    samples = timing.interleaved(runs, CPU, rounds=8)
    assert {name: len(seconds) for name, seconds in samples.items()} == {"a": 8, "b": 8, "c": 8}
    assert all(seconds > 0 for times in samples.values() for seconds in times)
    turns = ["".join(calls[start : start + 3]) for start in range(0, 27, 3)]
    assert {"".join(sorted(turn)) for turn in turns} == {"abc"}
    assert len(set(turns)) > 2, "the order changes"


# --- the file -----------------------------------------------------------------------------------------------------


def test_the_file_is_named_by_the_variable_else_in_the_cache_directory(monkeypatch, tmp_path):
    monkeypatch.setenv(tuning.VARIABLE, "mine.json")
    assert str(tuning.location()) == "mine.json"
    monkeypatch.delenv(tuning.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tuning.location() == tmp_path / "pyprune" / "tuning.json"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for relative in ("", "somewhere"):  # the specification ignores a relative one
        monkeypatch.setenv("XDG_CACHE_HOME", relative)
        assert tuning.location() == tmp_path / "home" / ".cache" / "pyprune" / "tuning.json"


def test_what_is_written_is_read_again(file):
    tuning.write(file, some_tuning())
    read = tuning.read(file)
    assert read == some_tuning()
    assert {type(tuned.config) for tuned in read.values()} == {Tile, AttentionTile}


def broken(change) -> str:
    data = tuning.to_json(some_tuning())
    change(data["entries"][0])
    return json.dumps(data)


def no_such(*path: str):
    def change(entry: dict) -> None:
        for name in path[:-1]:
            entry = entry[name]
        del entry[path[-1]]

    return change


def other(value: object, *path: str):
    def change(entry: dict) -> None:
        for name in path[:-1]:
            entry = entry[name]
        entry[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[]", "is not of format pyprune-tuning/2"),
        ('{"format": "pyprune-tuning/0", "entries": []}', "is not of format"),
        ('{"format": "pyprune-tuning/2", "entries": {}}', "is not of format"),
        ('{"format": "pyprune-tuning/2", "entries": [7]}', "entry 1: not an object"),
        (broken(no_such("triton")), "entry 1: 'triton'"),
        (broken(no_such("shape", "rows")), "entry 1: .*rows"),
        (broken(other(7, "gpu")), "entry 1: gpu: a string is expected"),
        (broken(other("int8", "dtype")), "entry 1: dtype: one of float32"),
        (broken(other("softmax", "operator")), "entry 1: operator: softmax with 16 rows is not tuned"),
        (broken(other(3, "shape", "rows")), "entry 1: shape: 3 rows are not a class"),
        (broken(other(True, "compute_capability")), "entry 1: compute_capability: a positive whole"),
        (broken(other(0.0, "seconds")), "entry 1: seconds: a positive number"),
        (broken(other("1e-6", "fixed_seconds")), "entry 1: fixed_seconds: a positive number"),
        (broken(other(1 << 20, "config", "block_n")), "entry 1: config: .*is not one of those"),
        (broken(other(4.0, "config", "warps")), "entry 1: config: .*is not one of those"),
        (broken(other(1, "config", "ctas")), "entry 1: config: .*is not one of those"),
        (broken(no_such("config", "warps")), "entry 1: config: .*is not one of those"),
        (broken(other([], "config")), "entry 1: config: .*is not one of those"),
        (broken(other(None, "config")), "entry 1: "),
    ],
)
def test_a_file_that_is_not_sound_is_refused_by_name(file, text, message):
    file.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        tuning.load()
    assert str(error.value).startswith(f"{file}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("entries", [[], [{"config": {"rows": 16, "columns": 64, "inner": 128}}], {}])
def test_a_file_of_an_older_format_is_refused_by_name_with_what_to_do(file, entries):
    file.write_text(json.dumps({"format": "pyprune-tuning/1", "entries": entries}))
    with pytest.raises(InputError) as error:
        tuning.load()
    assert str(error.value) == (
        f"{file}: is of the older format pyprune-tuning/1; remove it and run `pyprune tune` again"
    )


def test_without_a_file_the_fixed_table_holds(file):
    tuning.load()
    assert tuning.report() == {"file": str(file), "loaded": 0}
    assert tuning.chosen(torch.device("cuda:0"), "norm_gate_up", HALF, LINEAR) is None


# --- at launch ----------------------------------------------------------------------------------------------------


@pytest.fixture
def on_a_gpu(file, monkeypatch):
    """A file with entries, and a machine that takes itself for the GPU that they were measured on."""
    tuning.write(file, some_tuning())
    tuning.load()
    monkeypatch.setattr(tuning, "machine", lambda index: HERE if index == 0 else replace(HERE, gpu="another"))
    return torch.device("cuda:0")


def test_a_launch_takes_what_was_measured_for_its_gpu_operator_dtype_and_class(on_a_gpu):
    fixed = candidates("norm_gate_up", HALF, LINEAR, SM_90)[0]
    tuned = some_tuning()[key()].config
    assert tuned != fixed
    assert launch.configured(fixed, on_a_gpu, "norm_gate_up", HALF, LINEAR) == tuned
    for device, operator, dtype, shape in (
        (torch.device("cuda:1"), "norm_gate_up", HALF, LINEAR),
        (on_a_gpu, "linear_residual", HALF, LINEAR),
        (on_a_gpu, "norm_gate_up", torch.float16, LINEAR),
        (on_a_gpu, "norm_gate_up", HALF, replace(LINEAR, columns=8192)),
        (CPU, "norm_gate_up", HALF, LINEAR),
    ):
        assert launch.configured(fixed, device, operator, dtype, shape) is fixed


def test_another_triton_takes_nothing(on_a_gpu, monkeypatch):
    monkeypatch.setattr(tuning, "machine", lambda index: replace(HERE, triton="3.9.0"))
    assert tuning.chosen(on_a_gpu, "norm_gate_up", HALF, LINEAR) is None


def test_sizes_of_one_class_find_the_same_entry(on_a_gpu, monkeypatch):
    monkeypatch.setattr(launch, "architecture", lambda device: SM_90)
    tuned = some_tuning()[key()].config
    for rows, out, inner in ((3, 11008, 4096), (16, 8577, 4000), (5, 16384, 2049)):
        gate = torch.empty(out, inner, dtype=HALF, device="meta")
        assert launch.skinny_tile(on_a_gpu, "norm_gate_up", rows, gate, pair=True) == tuned
    small = torch.empty(8192, 4096, dtype=HALF, device="meta")
    assert launch.skinny_tile(on_a_gpu, "norm_gate_up", 16, small, pair=True) != tuned


def test_what_is_tried_reaches_the_kernels_of_every_operator():
    decoder = load_sizes("shape:tiny", torch.float16)
    for case in cases(decoder, SM_86):
        config = candidates(case.operator, case.dtype, case.shape, SM_86)[-1]
        with launch.trying(config), launch.recording(SM_86) as launches:
            run, _ = _on_meta(case)
            run()
        names = {"block_m": "BLOCK_M", "block_k": "BLOCK_K", "block_q": "BLOCK_Q", "block_kv": "BLOCK_KV"}
        blocks = {names[name]: value for name, value in asdict(config).items() if name in names}
        fitting = [start for start in launches if blocks.items() <= start.arguments.items()]
        assert fitting, (case.operator, config)
        assert (fitting[0].warps, fitting[0].stages) == (config.warps, config.stages)


class Kernel:
    """In place of a compiled kernel: records how it was started or compiled. Some configurations do not compile."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.compiled: list[int] = []

    def __getitem__(self, grid):
        return lambda tile, **options: self.started.append(tile)

    def warmup(self, tile, grid, **options):
        if tile == 2:
            raise RuntimeError("out of registers")
        self.compiled.append(tile)


def test_kernels_are_compiled_ahead_without_being_started():
    kernel, tried = Kernel(), []

    def prepare(device):
        def run() -> Tensor:
            tried.append(launch._tried)
            for part in (1, 10):  # an operator of two kernels
                launch.launch(kernel, (1,), CPU, 4, 1, tile=launch._tried.block_n * part)
            return torch.ones(1)

        return run, []

    configurations = [Tile(1, block_n, 64, 4, 1) for block_n in (1, 2, 3)]
    kernel_tuning.compile_ahead(Case("padded_linear", HALF, LINEAR, prepare), configurations, CPU, jobs=2)
    assert tried == configurations
    assert (kernel.started, kernel.compiled) == ([], [1, 10, 3, 30])
    launch.launch(kernel, (1,), CPU, 4, 1, tile=5)
    assert kernel.started == [5]


def _on_meta(case: Case) -> tuple:
    import unittest.mock

    from pyprune.study import tuning_cases

    empty = lambda device, dtype, *shape, seed=0: torch.empty(*shape, dtype=dtype, device=device)  # noqa: E731
    with unittest.mock.patch.object(tuning_cases, "_random", empty):
        return case.prepare(torch.device("meta"))
