"""docs/iterate.md: its Python runs, and its commands are accepted."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from pyprune.cli import build_parser

PAGE = (Path(__file__).parents[2] / "docs" / "iterate.md").read_text("utf-8")


def test_its_commands_are_accepted():
    commands = re.findall(r"^pyprune (.+)$", PAGE, re.MULTILINE)
    assert commands
    for command in commands:
        build_parser().parse_args(shlex.split(command))


def test_its_python_runs(capsys):
    pytest.importorskip("peft")
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(code, "iterate.md", "exec"), {"__name__": "iterate.md"})
    assert re.fullmatch(r"\[\('block', \d+\), \('block', \d+\)\] \[.*\]\n\[.*\]\n", capsys.readouterr().out)


def test_every_option_on_the_page_is_one():
    command = build_parser().parse_args(["iterate", "m", "--count", "1", "--train-text", "t", "--out", "o"])
    options = set(re.findall(r"`--([a-z-]+)", PAGE))
    assert options
    for option in options:
        assert hasattr(command, option.replace("-", "_")), option
