"""Who imports whom: `python -m tests.import_graph` prints the packages; with a module's name, that module's imports.

Counted is every import of our own modules, wherever it stands: at the top of a file, within a function, under
TYPE_CHECKING, or by name through importlib. That a module's package is imported before it is not counted.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import networkx

ROOT = Path(__file__).parent.parent
LAYERS = (
    ("pyprune", "registration"),  # `import pyprune`: everything by name, when first asked for
    ("__main__",),
    ("cli",),
    ("commands",),
    ("study",),
    ("evaluation",),
    ("lm_eval",),
    ("retraining",),
    ("recovery",),
    ("scoring",),
    ("pruning",),
    ("runtime",),
    ("models",),
    ("ops",),
    ("triton_kernels",),
    ("checks", "files", "installation", "progress", "strides"),
    ("errors",),
)
"""Packages and modules of pyprune from top to bottom; imports go downward, or stay within one."""


@dataclass(frozen=True)
class Import:
    """One import of a module of ours. `function`: the innermost one it stands in, "" at the top of the file; `target`
    is None where the name is computed."""

    source: str
    target: str | None
    line: int
    function: str


def module_files() -> dict[str, Path]:
    """Every module of ours and its file."""
    files = {}
    for folder, package in ((ROOT / "pyprune", "pyprune"), (ROOT / "triton_kernels", "pyprune.triton_kernels")):
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            files[".".join((package, *parts)).removesuffix(".__init__")] = file
    return files


def imports() -> list[Import]:
    """Every import of a module of ours by another."""
    files = module_files()
    return [
        found
        for module, file in files.items()
        for found in _imports(module, ast.parse(file.read_text(encoding="utf-8")), frozenset(files), "")
        if found.target != module
    ]


def circles(edges: list[Import]) -> list[list[str]]:
    """The groups of modules that import one another, each sorted."""
    graph = networkx.DiGraph((edge.source, edge.target) for edge in edges if edge.target)
    return sorted(sorted(group) for group in networkx.strongly_connected_components(graph) if len(group) > 1)


def upward(edges: list[Import]) -> list[Import]:
    """The imports from a lower layer of a higher one."""
    return [edge for edge in edges if edge.target and level(edge.target) < level(edge.source)]


def package_of(module: str) -> str:
    """ "models" of "pyprune.models.decoder"; "pyprune" of itself."""
    return module.split(".")[1] if "." in module else module


def level(module: str) -> int:
    """The place of a module's package in `LAYERS`, 0 at the top. KeyError where it has none."""
    return {name: place for place, layer in enumerate(LAYERS) for name in layer}[package_of(module)]


def _imports(module: str, tree: ast.AST, known: frozenset[str], function: str) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        names: list[str | None] = []
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names if alias.name in known]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{module}:{node.lineno}: a relative import; the whole name is expected")
            within = [f"{node.module}.{alias.name}" for alias in node.names]
            names += {name if name in known else node.module for name in within if node.module in known}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            name = node.args[0].value if isinstance(node.args[0], ast.Constant) else None
            names += [name] if name is None or name in known else []
        for name in names:
            yield Import(module, name, node.lineno, function)
        inner = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else function
        yield from _imports(module, node, known, inner)


def main(arguments: list[str]) -> None:
    edges = imports()
    if arguments:
        for edge in edges:
            if edge.source == arguments[0]:
                print(f"{edge.line:5}  {edge.target or '(computed)'}{f'  in {edge.function}' * bool(edge.function)}")
        return
    packages = {name: Counter() for layer in LAYERS for name in layer}
    for edge in edges:
        if edge.target and package_of(edge.target) != package_of(edge.source):
            packages[package_of(edge.source)][package_of(edge.target)] += 1
    for layer in LAYERS:
        for package in layer:
            below = sorted(packages[package].items(), key=lambda item: (level(f"pyprune.{item[0]}"), item[0]))
            print(f"{package:15} -> {', '.join(f'{name} {count}' for name, count in below) or 'nothing'}")
    print("circles:", "; ".join(" ".join(circle) for circle in circles(edges)) or "none")
    print("upward:", "; ".join(f"{edge.source}:{edge.line} {edge.target}" for edge in upward(edges)) or "none")


if __name__ == "__main__":
    main(sys.argv[1:])
