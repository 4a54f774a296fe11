"""The difference that docs/guides/extend.md shows for Qwen3 is what the code has."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from pyprune.models import families

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "extend.md"


def test_the_diff_of_qwen3_is_its_file_without_types():
    diff = re.search(r"```diff\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    shown = "\n".join(line[1:] for line in diff.split("+++ b/pyprune/models/families/qwen3.py")[1].splitlines()[1:])
    source = Path(families.__file__).with_name("qwen3.py").read_text()
    assert untyped_class(shown) == untyped_class(source)
    entered = Path(families.__file__).read_text().splitlines()
    for line in re.findall(r"^\+(?!\+)(.*)$", diff.split("--- /dev/null")[0], re.MULTILINE):
        assert line in entered


def untyped_class(source):
    """The one class of a module, without annotations and docstrings, as text."""
    [kind] = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    for node in ast.walk(kind):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
            for argument in node.args.args:
                argument.annotation = None
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            node.body = node.body[1:]
    return ast.unparse(kind)
