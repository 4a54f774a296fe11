"""The snippets of docs/models.md, docs/families.md and docs/checkpoints.md do what the pages say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pyprune.models import families

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("page", "printed"),
    [
        ("models.md", r"\[0, 0, 8, 8\]\n\[\(0, 0\), \(2, 8\), \(3, 8\)\]\n\d+\.\d+\n"),
        ("families.md", "3 heads, 3 blocks\n"),
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
