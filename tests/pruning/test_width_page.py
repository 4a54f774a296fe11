"""docs/reference/width.md names every method and every alternative."""

from __future__ import annotations

from pathlib import Path

from pyprune.pruning.width import METHODS, variant_options

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "width.md").read_text("utf-8")


def test_every_word_of_every_method_is_on_the_page():
    for name, method in METHODS.items():
        assert f"`{name}`" in PAGE
        for option in method.options:
            for word in option:
                assert f"`{word}`" in PAGE
                assert word in variant_options(name, word)
