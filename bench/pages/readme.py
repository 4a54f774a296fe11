"""The README's generated parts: each stands between `<!-- generated: NAME -->` and `<!-- end -->`."""

from __future__ import annotations

import re
from collections.abc import Callable

from bench.pages import tables
from bench.pages.status import short_matrix

PARTS: dict[str, Callable[[], str]] = {
    "depth and width": tables.repaired_and_retrained,
    "decoding": tables.decoding,
    "support": short_matrix,
}
PART = re.compile(r"(<!-- generated: ([\w ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """The README with its generated parts as the results have them. ValueError where parts are missing or unknown."""
    present = [name for _, name, _ in PART.findall(text)]
    if sorted(present) != sorted(PARTS):
        raise ValueError(f"README.md: generated parts {present}; {list(PARTS)} are expected")
    return PART.sub(lambda match: f"{match[1]}\n{PARTS[match[2]]()}\n\n{match[3]}", text)
