"""The command line within this process: what it prints and its exit code."""

from __future__ import annotations

from pyprune import cli

TINY = "shape:tiny"
FEW = ["--samples", "2", "--seq-len", "8"]


def run(capsys, *words: object) -> tuple[int, str, str]:
    """The exit code, standard output and standard error of `pyprune WORDS`."""
    code = cli.main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err
