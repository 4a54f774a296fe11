"""What is installed, and what an installation says where it cannot work. `make check-wheel` installs for real."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import setuptools

import pyprune
from tests.cuda.tools import ROOT


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """setup.py's globals, with what it hands to setuptools as `given`."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **options: given.update(options))
    monkeypatch.chdir(ROOT)
    return {**runpy.run_path(str(ROOT / "setup.py")), "given": given}


def test_every_folder_with_python_is_a_package_that_is_installed(build: dict[str, Any]):
    folders = {file.parent.relative_to(ROOT) for file in (ROOT / "pyprune").rglob("*.py")}
    folders |= {"pyprune" / file.parent.relative_to(ROOT) for file in (ROOT / "triton_kernels").rglob("*.py")}
    assert set(build["given"]["packages"]) == {".".join(folder.parts) for folder in folders}


def test_the_version_stands_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "pyprune.__version__"}
    assert pyprune.__version__


def test_a_package_index_is_given_no_link_that_leads_nowhere(build: dict[str, Any], tmp_path: Path):
    text = build["given"]["long_description"]
    assert text.startswith("# pyprune\n")
    targets = re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'src(?:set)?="([^"]+)"', text)
    assert all(target.startswith("https://") for target in targets)
    assert build["given"]["long_description_content_type"] == "text/markdown"
    (tmp_path / "README.md").write_text('[a](pages/a.md) ![b](b.svg)\n<img src="c.svg"> [d](https://d)\n<!-- e -->\n')
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    description = build["long_description"]
    description.__globals__["HERE"] = tmp_path
    assert "pages/a.md" not in description()
    assert "[d](https://d)" in description()
    (tmp_path / "pyproject.toml").write_text('[project.urls]\nRepository = "https://r/p/"\n')
    text = description()
    for target in (
        "(https://r/p/blob/main/pages/a.md)",
        "(https://r/p/raw/main/b.svg)",
        '"https://r/p/raw/main/c.svg"',
    ):
        assert target in text
    assert "(https://d)" in text
    assert "<!--" not in text


def answering(*answers: str) -> Any:
    """subprocess.run, as if an interpreter printed each of these in turn; and its calls."""
    calls: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        return subprocess.CompletedProcess(command, 0, answers[len(calls) - 1] + "\n", "")

    run.calls = calls
    return run


def installed_torch(folder: Path, version: str) -> Path:
    (folder / "torch").mkdir()
    (folder / "torch" / "version.py").write_text(f"__version__ = '{version}'\n")
    return folder / "torch"


def test_an_isolated_build_takes_the_torch_of_the_environment(
    build: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    assert (build["torch_folder"]() / "include").is_dir()
    torch = installed_torch(tmp_path, "2.10.0+cu128")
    run = answering("", str(torch))
    monkeypatch.setattr(subprocess, "run", run)
    assert build["torch_folder"]() == torch
    assert ["-E" in command for command in run.calls] == [False, True]


def test_a_build_without_torch_says_in_one_line_what_to_type(build: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(subprocess, "run", answering("", ""))
    with pytest.raises(SystemExit, match=r"^pyprune: .*pip install 'torch>=2\.10', then this again.*\Z") as stop:
        build["torch_folder"]()
    assert "\n" not in str(stop.value)


@pytest.mark.parametrize("version", ["2.9.1", "1.13.0+cu117"])
def test_a_build_with_a_torch_that_is_too_old_says_so(
    version: str, build: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(subprocess, "run", answering(str(installed_torch(tmp_path, version))))
    with pytest.raises(
        SystemExit, match=r"^pyprune: torch \d\.\d+: 2\.10 or newer is expected: pip install 'torch>=2\.10'$"
    ):
        build["torch_folder"]()


def test_what_is_compiled_stays_until_the_tools_change(
    build: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    torch = installed_torch(tmp_path, "2.10.0")
    builder = SimpleNamespace(build_folder=tmp_path / "cmake")
    build_libraries = build["BuildWithCMake"].build_libraries
    monkeypatch.setitem(build_libraries.__globals__, "torch_folder", lambda: torch)
    run, cmake = subprocess.run, build["tool"]("cmake")
    fails = set()

    def no_cmake(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        if command[0] != cmake:
            return run(command, **options)
        if "--build" not in command and "cmake" in fails:
            raise subprocess.CalledProcessError(1, command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", no_cmake)

    def stays() -> bool:
        compiled = builder.build_folder / "compiled.o"
        build_libraries(builder)
        stayed = compiled.exists()
        compiled.touch()
        return stayed

    assert [stays(), stays()] == [False, True]
    (torch / "version.py").write_text("__version__ = '2.11.0'\n")
    assert [stays(), stays()] == [False, True]
    monkeypatch.setenv("CXXFLAGS", "-O1")
    assert [stays(), stays()] == [False, True]
    monkeypatch.setenv("PYPRUNE_CUDA", "0")
    fails.add("cmake")
    with pytest.raises(subprocess.CalledProcessError):
        stays()
    fails.clear()
    assert [stays(), stays()] == [False, True]


def imported(*places: Path) -> subprocess.CompletedProcess[str]:
    """`import pyprune` by a Python that finds packages in these folders alone."""
    code = (
        f"import sys; sys.path[:0] = {[str(place) for place in places]!r}; import pyprune; print(pyprune.__version__)"
    )
    return subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)


def test_sources_that_hide_an_installation_say_so_and_others_do_not(tmp_path: Path):
    site = tmp_path / "site-packages"
    (site / "pyprune" / "triton_kernels").mkdir(parents=True)
    assert imported(ROOT, site).stdout.strip() == pyprune.__version__
    (site / "pyprune-0.1.0.dist-info").mkdir()
    (site / "pyprune-0.1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: pyprune\nVersion: 0.1.0\n")
    last = imported(ROOT, site).stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: {ROOT / 'pyprune'} hides the installed pyprune ({site / 'pyprune'}): ")
    assert f"pip install --editable {ROOT}" in last
