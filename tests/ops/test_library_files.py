"""Which native library belongs to this pyprune: the digest of what both must agree on, and what is refused by name."""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pyprune.errors import InputError, NativeLibraryWarning
from pyprune.ops import gpu, library_files, native, schemas, torch_version
from tests.cuda import tools
from tests.library import FORCED

needs_library = pytest.mark.skipif(not native.LIBRARY_PATH.exists(), reason="the CPU library is not built here")
needs_nm = pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
RECORD = b"\x7fELF" + b"\0" * 64 + b"pyprune library: digest=%s targets=80,86-real,90a-real toolkit=13.0.88;\0"


@pytest.mark.parametrize("table", ["SCHEMAS", "CONSTANTS", "FUNCTIONS"])
def test_the_digest_is_another_when_what_is_shared_changes(table: str, monkeypatch: pytest.MonkeyPatch):
    before = schemas.digest()
    for name, value in list(getattr(schemas, table).items()):
        monkeypatch.setitem(getattr(schemas, table), name, f"{value} ")
        assert schemas.digest() != before, name
        monkeypatch.setitem(getattr(schemas, table), name, value)
        assert schemas.digest() == before


def test_the_digest_is_another_when_the_layout_changes(monkeypatch: pytest.MonkeyPatch):
    first, second, *rest = schemas.LAYOUT
    seen = {schemas.digest()}
    for layout in (
        (second, first, *rest),
        (first, *rest),
        (first, second, *rest, "more"),
        (first + "x", second, *rest),
    ):
        monkeypatch.setattr(schemas, "LAYOUT", layout)
        seen.add(schemas.digest())
    assert len(seen) == 5


def test_the_digest_is_another_when_a_gguf_type_comes(monkeypatch: pytest.MonkeyPatch):
    before = schemas.digest()
    monkeypatch.setattr(schemas, "GGUF_TYPES", (*schemas.GGUF_TYPES, 99))
    assert schemas.digest() != before


@needs_library
def test_the_library_carries_the_digest_and_is_accepted():
    assert library_files.record(native.LIBRARY_PATH) == {"digest": schemas.digest()}
    assert schemas.digest() in native.LIBRARY_PATH.name
    assert library_files.problem(native.LIBRARY_PATH) is None


@needs_library
def test_the_constants_that_stand_in_for_the_librarys_are_the_same():
    if not native.load():
        pytest.skip("the CPU library is not loaded")
    assert {name: native.constant(name) for name in schemas.CONSTANTS} == schemas.CONSTANTS
    assert native.constant("NO_SUCH_SIZE") == -1


@needs_library
def test_packed_rows_take_what_the_instruction_set_makes_of_them(isa: str):
    assert native.packed_bytes(torch.float32, 64, 3) == 3 * 64 * 4
    assert native.packed_bytes(torch.bfloat16, 64, 3) == 3 * 64 * (2 if native.multiplies_bfloat16() else 4)
    assert native.multiplies_bfloat16() == (isa in ("avx512_bf16", "amx"))


@needs_library
@needs_nm
def test_every_function_of_the_library_is_in_the_digest_and_none_is_of_python():
    names = {line.split()[-1] for line in tools.output("nm", "-D", "--defined-only", native.LIBRARY_PATH).splitlines()}
    of_cpu = {name for name in schemas.FUNCTIONS if not name.startswith("pyprune_cuda")}
    assert {name for name in names if name.startswith("pyprune_")} == of_cpu
    undefined = {line.split()[-1] for line in tools.output("nm", "-D", "-u", native.LIBRARY_PATH).splitlines()}
    assert not [name for name in undefined if re.match(r"_?Py[A-Z_]", name)]


def test_the_cuda_functions_are_those_of_its_source():
    source = (tools.CSRC / "registration.cpp").read_text()
    defined = set(re.findall(r"(pyprune_cuda_\w+)\(", source))
    assert defined == {name for name in schemas.FUNCTIONS if name.startswith("pyprune_cuda")}


def library(folder: Path, name: str, digest: str, machine: str = library_files.platform.machine()) -> Path:
    content = bytearray(RECORD % digest.encode())
    content[18:20] = library_files.ELF_MACHINES.get(machine, 0).to_bytes(2, "little")
    (folder / name).write_bytes(content)
    return folder / name


def test_what_was_built_for_another_pyprune_is_refused_by_name(tmp_path: Path):
    path = tmp_path / f"_cuda_{schemas.digest()}.so"
    assert library_files.problem(path) == f"{path.name} was not built"
    library(tmp_path, "_cuda.so", "")
    library(tmp_path, "_cuda_000000000000.so", "000000000000")
    library(tmp_path, "_cpu_000000000000.so", "000000000000")
    assert library_files.problem(path) == (
        f"_cuda.so, _cuda_000000000000.so were built for another pyprune, {path.name} is expected"
    )
    (tmp_path / "_cuda.so").unlink()
    assert library_files.problem(path) == (
        f"_cuda_000000000000.so was built for another pyprune, {path.name} is expected"
    )
    assert library_files.cuda_targets(path) is None


def test_another_name_does_not_make_a_library_fit(tmp_path: Path):
    path = library(tmp_path, f"_cpu_{schemas.digest()}.so", "000000000000")
    assert "another pyprune: its digest is not" in (library_files.problem(path) or "")
    path.write_bytes(b"")
    assert "its digest is not" in (library_files.problem(path) or "")
    library(tmp_path, path.name, schemas.digest())
    assert library_files.problem(path) is None


def test_a_library_for_another_processor_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = library(tmp_path, f"_cpu_{schemas.digest()}.so", schemas.digest(), "aarch64")
    monkeypatch.setattr(library_files.platform, "machine", lambda: "x86_64")
    assert library_files.problem(path) == f"{path.name} was built for aarch64, and this machine is x86_64"
    library(tmp_path, path.name, schemas.digest(), "riscv64")
    assert "another processor (ELF machine 0)" in (library_files.problem(path) or "")
    monkeypatch.setattr(library_files.platform, "machine", lambda: "riscv64")
    assert library_files.problem(path) is None


def test_a_stale_cpu_library_is_not_loaded_and_the_warning_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for variable in ("PYPRUNE_NATIVE", *FORCED):
        monkeypatch.delenv(variable, raising=False)
    library(tmp_path, "_cpu_000000000000.so", "000000000000")
    monkeypatch.setattr(native, "LIBRARY_PATH", tmp_path / f"_cpu_{schemas.digest()}.so")
    monkeypatch.setattr(native, "_library", None)
    monkeypatch.setattr(native, "_reason", None)
    monkeypatch.setattr(torch.ops, "load_library", lambda path: pytest.fail(f"{path} was loaded"))
    with pytest.warns(NativeLibraryWarning, match=r"_cpu_000000000000\.so was built for another pyprune"):
        assert not native.load()


def test_a_stale_cuda_library_is_not_loaded_and_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    library(tmp_path, "_cuda_000000000000.so", "000000000000")
    monkeypatch.setattr(gpu, "CUDA_LIBRARY_PATH", tmp_path / f"_cuda_{schemas.digest()}.so")
    monkeypatch.setattr(torch.ops, "load_library", lambda path: pytest.fail(f"{path} was loaded"))
    with pytest.raises(InputError, match=r"^PYPRUNE_GPU=cuda: _cuda_000000000000\.so was built for another pyprune"):
        gpu._load_cuda_library()


def test_a_driver_that_is_too_old_for_the_cuda_library_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = library(tmp_path, f"_cuda_{schemas.digest()}.so", schemas.digest())
    monkeypatch.setattr(gpu, "CUDA_LIBRARY_PATH", path)
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    problem = type("Function", (), {"__call__": lambda self: b"it was built with CUDA 13.0"})()
    monkeypatch.setattr(gpu.ctypes, "CDLL", lambda path: SimpleNamespace(pyprune_cuda_problem=problem))
    with pytest.raises(InputError, match=r"_cuda_\w+\.so cannot run here: it was built with CUDA 13\.0"):
        gpu._load_cuda_library()


def test_the_targets_of_a_cuda_library_are_told_without_loading_it(tmp_path: Path):
    path = library(tmp_path, f"_cuda_{schemas.digest()}.so", schemas.digest())
    assert library_files.cuda_targets(path) == "sm_80, sm_86, sm_90a, later GPUs by PTX of compute_80 (CUDA 13.0.88)"


@pytest.mark.parametrize("version", ["2.9.1+cu128", "1.13.1", "2.9.0a0+git1234"])
def test_a_torch_that_is_too_old_is_one_line(version: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(
        InputError, match=rf"^torch {re.escape(version)}: 2\.10 or newer is expected \(pip install .*\)$"
    ):
        torch_version.require()


@pytest.mark.parametrize("version", ["2.10.0", "2.13.0+cpu", "2.15.0a0+git1234", "3.0"])
def test_later_ones_are_taken(version: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "__version__", version)
    torch_version.require()


def test_the_oldest_torch_is_the_same_wherever_it_stands():
    major, minor = torch_version.OLDEST
    project = tomllib.loads((tools.ROOT / "pyproject.toml").read_text())["project"]
    assert f"torch>={major}.{minor}" in project["dependencies"]
    assert f"OLDEST_TORCH = ({major}, {minor})\n" in (tools.ROOT / "setup.py").read_text()
    targets = re.findall(r"TORCH_TARGET_VERSION=0x(\w\w)(\w\w)0{12}", (tools.ROOT / "CMakeLists.txt").read_text())
    assert {(int(a, 16), int(b, 16)) for a, b in targets} == {(major, minor)}
