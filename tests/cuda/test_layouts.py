"""The benchmark of the kernel's layouts, as far as it goes without a GPU."""

from __future__ import annotations

import shutil

import pytest

from bench.layouts.__main__ import VARIANTS, build, main, with_constants
from tests.cuda import tools


@pytest.mark.parametrize("constants", [found for found in VARIANTS.values() if found is not None])
def test_a_variant_is_the_header_with_its_constants(constants: tuple[int, int, int, int, int]):
    header = (tools.CSRC / "skinny_linear.h").read_text()
    threads, one, two, blocks_one, blocks_two = constants
    varied = with_constants(header, constants)
    assert f"kThreads = {threads};" in varied
    assert f"return matrices == 1 ? {one} : {two};" in varied
    assert f"return matrices == 1 ? {blocks_one} : {blocks_two};" in varied
    assert len(varied.splitlines()) >= len(header.splitlines()) - 2, "nothing else is gone"


def test_a_header_without_the_constants_is_refused():
    with pytest.raises(ValueError, match="kThreads"):
        with_constants("constexpr int kOthers = 256;", (128, 1, 2, 3, 4))


def test_without_a_compiler_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    assert main([]) == 2
    assert capsys.readouterr().err == "layouts: there is no nvcc on the PATH\n"


@pytest.mark.slow
@pytest.mark.skipif(tools.nvcc() is None, reason="nvcc is not installed")
def test_the_program_compiles(tmp_path):
    program = build(str(tools.nvcc()), "90a", tmp_path, VARIANTS["v4"])
    assert program.stat().st_size > 0
