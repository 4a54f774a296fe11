"""The code blocks of a Markdown file, with what the file says about running them.

`<!-- not run: REASON -->` on the line before a Python block leaves it out. `<!-- runs: ... -->` before a shell block
has it run; other shell blocks are only parsed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"(?:^<!-- (not run|runs): ([^\n]*) -->\n)?^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """One fenced block: its language, its text, and whether it is marked as run or not run."""

    language: str
    text: str
    mark: str


def blocks(page: str, *languages: str) -> list[Block]:
    """The blocks of a page (its path from the root) in these languages."""
    text = (ROOT / page).read_text("utf-8")
    return [Block(language, code, mark) for mark, _, language, code in BLOCK.findall(text) if language in languages]


def session(page: str) -> str:
    """The Python of a page as one session, without what is not run."""
    return "\n".join(block.text for block in blocks(page, "python") if block.mark != "not run")


def pages() -> list[str]:
    """The README and every page of docs/, by their path from the root."""
    return ["README.md", *(str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").rglob("*.md")))]


def commands(text: str) -> list[str]:
    """The commands of a shell block: lines that go on behind a backslash are joined."""
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]
