"""The Python examples of docs/width.md run as one session, in the order of the page, and its commands are read."""

import re
import shlex
from pathlib import Path

from pyprune.cli import build_parser
from pyprune.pruning.width import variant_options

PAGE = (Path(__file__).parents[2] / "docs" / "width.md").read_text("utf-8")


def test_the_examples_can_be_pasted(capsys):
    names = {"__name__": "width.md"}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(code, "width.md", "exec"), names)
    assert re.fullmatch(r"width flap \d+ \d+\n6 blocks\n", capsys.readouterr().out)


def test_the_command_is_one():
    (line,) = re.findall(r"^    (pyprune prune .*)$", PAGE, re.MULTILINE)
    assert build_parser().parse_args(shlex.split(line)[1:]).method == "flap"


def test_every_word_of_every_method_is_on_the_page():
    from pyprune.pruning.width import METHODS

    for name, method in METHODS.items():
        assert f"`{name}`" in PAGE
        for option in method.options:
            for word in option:
                assert f"`{word}`" in PAGE
                assert word in variant_options(name, word)
