"""docs/criteria.md: its Python runs as one session, its commands are accepted, its table has every criterion."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from pyprune.cli import build_parser
from pyprune.scoring.criteria import CRITERIA

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "criteria.md").read_text("utf-8")
THIRTY_BLOCKS = "shape:hidden=16,blocks=30,heads=2,kv_heads=1,head_dim=8,ffn=20,vocab=40"


def test_the_examples_can_be_pasted(capsys):
    """On a model of as many blocks that is quicker than the page's."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
    assert code.count("pyprune.score(") >= 10
    assert code.count("smollm2-135m") == 1
    exec(compile(code.replace("smollm2-135m", THIRTY_BLOCKS), "criteria.md", "exec"), {})
    correlation, window = capsys.readouterr().out.splitlines()
    assert -1 <= float(correlation) <= 1
    assert window.startswith("(")


def test_the_commands_are_accepted():
    lines = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)).splitlines()
    assert lines
    for line in lines:
        program, *words = shlex.split(line)
        assert program == "pyprune"
        build_parser().parse_args(words)


def test_the_table_has_every_criterion():
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([a-z-]+)`", row)]
    assert list(dict.fromkeys(named))[: len(CRITERIA)] == list(CRITERIA)
