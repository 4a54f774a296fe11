"""The Python examples of docs/generation.md run as one session, in the order of the page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "generation.md"


@pytest.mark.slow
@pytest.mark.real_model
def test_the_examples_can_be_pasted(smollm2, capsys):
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL))
    assert code.count("engine.generate(") >= 5
    exec(compile(code, str(PAGE), "exec"), {})
    assert "Paris" in capsys.readouterr().out
