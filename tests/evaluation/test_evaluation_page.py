"""docs/evaluation.md: its commands are accepted, and its Python runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pyprune
from pyprune.cli import build_parser
from pyprune.evaluation.texts import DATASETS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "evaluation.md").read_text("utf-8")


def test_its_commands_are_accepted():
    commands = re.findall(r"^    pyprune (.+)$", PAGE, re.MULTILINE)
    assert len(commands) >= 6
    for command in commands:
        build_parser().parse_args(shlex.split(command))


def test_its_python_runs(model_directory, text_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = re.findall(r"^    ((?:evaluation|pyprune\.)[.= ].*)$", PAGE, re.MULTILINE)
    lines = [line.replace("smollm2-135m", str(model_directory)).replace("demo:sms", str(text_file)) for line in lines]
    session = {"pyprune": pyprune}
    exec("\n".join(lines), session)
    assert pyprune.Evaluation.from_json("evaluation.json") == session["evaluation"]


def test_it_names_every_data_set():
    for name in DATASETS:
        assert f"| `{name}` |" in PAGE
