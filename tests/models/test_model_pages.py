"""The snippets of docs/models.md, docs/families.md and docs/checkpoints.md do what the pages say."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from pyprune.models import families

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("page", "printed"),
    [
        ("models.md", r"\[0, 0, 8, 8\]\n\[\(0, 0\), \(2, 8\), \(3, 8\)\]\n\d+\.\d+\n"),
        ("families.md", r"3 heads, 3 blocks\n4 (\[.*\])\ntorch\.Size\(\[1, 36\]\)\n"),
        ("checkpoints.md", "pyprune_llama 1 KV head in layer 0\n4 blocks in torch.bfloat16\n"),
    ],
)
def test_snippets_run_one_after_the_other(monkeypatch, capsys, tmp_path, page, printed):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(families, "FAMILIES", families.FAMILIES)  # the worked example enters a family: put back after
    names: dict[str, object] = {"__name__": page}
    for snippet in re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL):
        exec(compile(snippet, page, "exec"), names)
    assert re.fullmatch(printed, capsys.readouterr().out)


def test_the_diff_of_qwen3_is_its_file_without_types():
    diff = re.search(r"```diff\n(.*?)```", (DOCS / "families.md").read_text(), re.DOTALL)[1]
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
