"""Which recipes come with the package. Nothing heavy is here: the command line's help asks."""

from __future__ import annotations

from pathlib import Path

SHIPPED = Path(__file__).parent / "shipped"
BUDGETS = ("quick", "paper")


def shipped_recipes() -> list[str]:
    """Their names, by word and number."""
    return sorted((file.stem for file in SHIPPED.glob("*.toml") if file.stem != "budgets"), key=_by_number)


def _by_number(name: str) -> tuple[str, int]:
    word = name.rstrip("0123456789")
    return word, int(name[len(word) :] or 0)
