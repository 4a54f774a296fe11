"""Imports go downward: no circle, no import of a higher layer, and none within a function but for the reasons below."""

from __future__ import annotations

import ast
from fnmatch import fnmatchcase

import pytest

from tests import import_graph
from tests.import_graph import Import, circles, imports, module_files, upward

LATE = {
    # modules, and why they import ours within a function, or by name
    "pyprune": "`import pyprune` and `pyprune --help` take no torch, which costs seconds",
    "pyprune.registration": "waits until transformers is imported",
    "pyprune.commands.*": "a command imports what it runs; the help of all of them needs none of it",
    "pyprune.evaluation.tasks": "lm-eval is an extra",
    "pyprune.study.config": "the command line takes its defaults, and `pyprune --help` takes no torch",
    "pyprune.study.linears": "its timer needs Triton, which CPUs do without",
    "pyprune.study.sweep": "its plot needs matplotlib",
    "pyprune.ops.gpu": "the kernels need Triton, which CPUs do without",
    "pyprune.ops.self_check.passes": "the kernels need Triton, which CPUs do without",
    "pyprune.runtime.self_check.child": "its caller names the module",
    "pyprune.models.families.family": "transformers' classes, by the family's name of their module",
}


@pytest.fixture(scope="module")
def edges():
    return imports()


def test_no_modules_import_one_another(edges):
    assert circles(edges) == []


def test_no_module_imports_a_higher_layer(edges):
    assert [f"{edge.source}:{edge.line} {edge.target}" for edge in upward(edges)] == []


def test_imports_within_functions_have_a_reason(edges):
    late = [edge for edge in edges if edge.function and not any(fnmatchcase(edge.source, name) for name in LATE)]
    assert [f"{edge.source}:{edge.line} in {edge.function}" for edge in late] == []


def test_every_reason_is_still_needed(edges):
    late = [edge.source for edge in edges if edge.function]
    assert [name for name in LATE if not any(fnmatchcase(source, name) for source in late)] == []


def test_every_module_has_a_layer():
    assert {import_graph.level(module) for module in module_files()} == set(range(len(import_graph.LAYERS)))


def found(source: str) -> list[tuple[str | None, int, str]]:
    known = frozenset(("pyprune.low", "pyprune.high"))
    return [
        (edge.target, edge.line, edge.function) for edge in import_graph._imports("m", ast.parse(source), known, "")
    ]


def test_every_kind_of_import_is_seen():
    assert found("import pyprune.low, torch") == [("pyprune.low", 1, "")]
    assert found("from pyprune.low import name, other") == [("pyprune.low", 1, "")]
    assert found("if TYPE_CHECKING:\n    from pyprune.high import Name") == [("pyprune.high", 2, "")]
    assert found("def f():\n    if 1:\n        import pyprune.high") == [("pyprune.high", 3, "f")]
    assert found("def f():\n    return importlib.import_module('pyprune.low').g") == [("pyprune.low", 2, "f")]
    assert found("def f(name):\n    import_module(f'pyprune.{name}')") == [(None, 2, "f")]
    assert found("importlib.import_module('torch')") == []
    with pytest.raises(ValueError, match="m:1: a relative import"):
        found("from . import low")


def test_circles_and_upward_imports_are_seen():
    def edge(source: str, target: str) -> Import:
        return Import(f"pyprune.{source}", f"pyprune.{target}", 1, "")

    down = [edge("cli", "models.load"), edge("models.load", "ops"), edge("models.load", "models.decoder")]
    assert (circles(down), upward(down)) == ([], [])
    back = edge("models.decoder", "models.load")
    assert circles([*down, back]) == [["pyprune.models.decoder", "pyprune.models.load"]]
    assert upward([*down, edge("ops.gpu", "models.load")]) == [edge("ops.gpu", "models.load")]
