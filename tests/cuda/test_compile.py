"""What the CUDA compiler makes of the kernel, without a GPU: registers, spills, the loads, dependent launch."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from pyprune.ops import library_files, schemas
from tests.cuda import tools

pytestmark = tools.needs_library
needs_disassembler = tools.needs_disassembler

ARCHITECTURES = ("80", "86", "90a")
FORMS = (1, 2, 2)  # matrices of each
INSTANTIATIONS = {(w, rows, form) for w in ("float", "Bf16", "Half") for rows in (1, 2) for form in range(3)}
WIDE_LOAD = re.compile(r"LDG\.E\.NA\.128\.CONSTANT|LDG\.E\.128\S*\.NA\S*|LDG\.E\.NA\.\S*128")


@pytest.fixture(scope="module")
def library() -> Path:
    return tools.library()


def instantiation(mangled: str) -> tuple[str, int, int]:
    """skinny_linear<W, rows, form> from its mangled name."""
    found = re.search(r"skinny_linearI(f|NS0_4Bf16E|NS0_4HalfE)Li(\d)ELNS0_4FormE(\d)E", mangled)
    assert found, mangled
    names = {"f": "float", "NS0_4Bf16E": "Bf16", "NS0_4HalfE": "Half"}
    return names[found[1]], int(found[2]), int(found[3])


@needs_disassembler
def test_nothing_spills_and_registers_allow_the_planned_blocks(library: Path):
    report = tools.output(tools.cuobjdump() or "", "--dump-resource-usage", library)
    seen = set()
    for part in report.split("Fatbin elf code:")[1:]:
        arch = re.search(r"^arch = sm_(\w+)", part, re.MULTILINE)[1]
        for name, registers, stack, local in re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+).* LOCAL:(\d+)", part):
            assert (stack, local) == ("0", "0"), (name, arch)  # what spills lies on the stack
            weights, rows, form = which = instantiation(name)
            seen.add((which, arch))
            blocks = 3 if (FORMS[form], rows) == (2, 1) and weights != "float" else 2
            assert int(registers) * 256 * blocks <= 65536, (name, arch, registers)
    assert seen == {(i, arch) for i in INSTANTIATIONS for arch in ARCHITECTURES}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is not installed")
def test_the_library_says_what_it_is_for_and_needs_the_torch_that_has_cuda(library: Path):
    record = library_files.record(library)
    assert record["digest"] == schemas.digest()
    assert [target.removesuffix("-real") for target in record["targets"].split(",")] == list(ARCHITECTURES)
    needed = re.findall(r"NEEDED.*\[(\S+)\]", tools.output("readelf", "-d", library))
    assert {"libtorch_cpu.so", "libtorch_cuda.so"} <= set(needed)
    assert not [name for name in needed if re.match(r"libcuda|libpython|libcudart", name)]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
def test_its_functions_are_those_of_the_digest(library: Path):
    names = [line.split()[-1] for line in tools.output("nm", "-D", "--defined-only", library).splitlines()]
    expected = {name for name in schemas.FUNCTIONS if name.startswith("pyprune_cuda")}
    assert {name for name in names if name.startswith("pyprune_")} == expected


def functions(assembly: str) -> dict[tuple[str, int, int], list[str]]:
    """The instructions of each instantiation, in order."""
    parts = re.split(r"Function : (\S+)", assembly)[1:]
    code = dict(zip(parts[::2], parts[1::2], strict=True))
    return {
        instantiation(name): re.findall(r"/\*[0-9a-f]{4,}\*/\s+(\S.*?);", text)
        for name, text in code.items()
        if "skinny_linear" in name
    }


@pytest.fixture(scope="module", params=ARCHITECTURES)
def assembly(request: pytest.FixtureRequest, library: Path) -> tuple[str, dict[tuple[str, int, int], list[str]]]:
    text = tools.output(tools.cuobjdump() or "", "-sass", "-arch", f"sm_{request.param}", library)
    return request.param, functions(text)


@pytest.mark.slow
@needs_disassembler
def test_weights_are_loaded_sixteen_bytes_at_a_time_and_enough_at_once(assembly):
    arch, code = assembly
    assert set(code) == INSTANTIATIONS
    for which, instructions in code.items():
        wide = [line for line in instructions if WIDE_LOAD.search(line)]
        ring = 8 if FORMS[which[2]] == 1 else 6
        assert len(wide) >= 2 * ring, (arch, which, len(wide))  # the ring's filling, and its refilling in the loop
        assert not any(re.search(r"\b(LDL|STL)\b", line) for line in instructions), (arch, which)


@pytest.mark.slow
@needs_disassembler
def test_x_is_read_sixteen_bytes_at_a_time(assembly):
    arch, code = assembly
    for which, instructions in code.items():
        assert sum("LDS.128" in line for line in instructions) >= which[1] * (8 if FORMS[which[2]] == 1 else 6), (
            arch,
            which,
        )


@pytest.mark.slow
@needs_disassembler
def test_dependent_launch_is_compiled_for_hopper_alone(assembly):
    arch, code = assembly
    for which, instructions in code.items():
        names = [re.sub(r"^@!?U?P\w+\s+", "", line).split()[0] for line in instructions]
        assert ("ACQBULK" in names) == ("PREEXIT" in names) == (arch == "90a"), (arch, which)


@pytest.mark.slow
@needs_disassembler
def test_on_hopper_the_ring_is_filled_before_the_wait_and_nothing_else_is_read(library: Path):
    code = functions(tools.output(tools.cuobjdump() or "", "-sass", "-arch", "sm_90a", library))
    for which, instructions in code.items():
        wait = next(i for i, line in enumerate(instructions) if "ACQBULK" in line)
        before = [line for line in instructions[:wait] if re.search(r"\bLDG?\.", line)]
        flag = [line for line in before if ".U8" in line]  # the skip flag, where there is a mask
        assert len(flag) == 1, (which, before)
        before.remove(flag[0])
        assert len(before) == (8 if FORMS[which[2]] == 1 else 6), (which, before)
        assert all(WIDE_LOAD.search(line) for line in before), (which, before)


@pytest.mark.slow
@needs_disassembler
def test_later_architectures_get_ptx_of_compute_80_alone_and_weights_stream_past_both_caches(library: Path):
    ptx = tools.output(tools.cuobjdump() or "", "-ptx", library)
    assert set(re.findall(r"\.target (\S+)", ptx)) == {"sm_80"}
    assert "griddepcontrol" not in ptx
    for entry in ptx.split(".entry")[1:]:
        wide = {load for load in re.findall(r"ld\.global\.nc\S*", entry) if "v4" in load}
        assert wide == {"ld.global.nc.L1::no_allocate.L2::cache_hint.v4.b32"}
        assert "createpolicy.fractional.L2::evict_first.b64" in entry
