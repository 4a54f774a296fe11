"""How long the README and docs/ are: words of prose, and numbers in every hundred of them.

    python -m bench.pages.prose [FILE ...]

What counts as prose, of a Markdown file:
- paragraphs, headings, list items and captions; the text of links, not their addresses; HTML's text, not its tags;
- inline code, as so many words; a number in it is none;
- a table's cell only where it has more than LONG_CELL words, so that no prose hides in a table.
Blocks of code do not count, nor do images, comments and the rest of the tables. A page that a test writes as one table
of its results (WRITTEN_BY_TESTS) is left out as a whole.

A number is digits that begin a word ("12", "3.5x", "20 %", "4,096", "two" is none); digits inside a name are not
("H100", "SmolLM2-135M", "bf16").
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
LONG_CELL = 25
README = ROOT / "README.md"
README_WORDS, README_NUMBERS = 900, 4.0
DOCS_WORDS, DOCS_NUMBERS = 8490, 3.0
"""The promise is 9,000 words in docs/. Other ways to count give up to 6 % more, hence the margin."""

WITH_NUMBERS = ("docs/benchmarks.md", "docs/paper-on-smollm2.md", "docs/recovery.md")
"""Pages that are there for their figures."""

WRITTEN_BY_TESTS = ("docs/reference/families_table.md",)

FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2\s*$", re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
INDENTED = re.compile(r"(?:(?<=\n\n)|\A)(?: {4}.*\n?|\n(?= {4}))+", re.MULTILINE)
IMAGE = re.compile(r"!\[[^\]]*\]\([^)]*\)")
LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
TAG = re.compile(r"<[^>\n]+>")
ADDRESS = re.compile(r"https?://\S+")
CODE = re.compile(r"(`+)(?:(?!\n\n).)+?\1", re.DOTALL)
NUMBER = re.compile(r"(?<![\w.,:/#-])[-+~]?\d[\d.,]*\w*")
WORD = re.compile(r"\w[\w'’.,:/+=-]*")


class Count(NamedTuple):
    """Words of prose and the numbers among them."""

    words: int
    numbers: int

    def __add__(self, other: object) -> Count:  # type: ignore[override]  # counts add up, they are not sequences
        assert isinstance(other, Count)
        return Count(self.words + other.words, self.numbers + other.numbers)

    @property
    def per_hundred(self) -> float:
        """Numbers in a hundred words."""
        return 100 * self.numbers / max(self.words, 1)


def count(markdown: str) -> Count:
    """The words and numbers of the prose in `markdown`."""
    return Count(len(WORD.findall(prose(markdown))), len(NUMBER.findall(prose(markdown, code=False))))


def prose(markdown: str, *, code: bool = True) -> str:
    """What a reader reads as prose, by the rules above, with its inline code or without."""
    text = COMMENT.sub("", FENCE.sub("", markdown.replace("\r\n", "\n")))
    lines = [line if not line.lstrip().startswith("|") else "\n".join(long_cells(line)) for line in text.split("\n")]
    text = INDENTED.sub("", "\n".join(lines))
    if not code:
        text = CODE.sub(" ", text)
    return ADDRESS.sub("", TAG.sub("", LINK.sub(r"\1", IMAGE.sub("", text))))


def long_cells(row: str) -> list[str]:
    """The cells of a table's row that are prose."""
    cells = (CODE.sub(" ", LINK.sub(r"\1", cell)) for cell in re.split(r"(?<!\\)\|", row))
    return [cell for cell in cells if len(WORD.findall(cell)) > LONG_CELL]


def pages(root: Path = ROOT) -> list[Path]:
    """Every page of docs/ that somebody wrote."""
    return [
        page for page in sorted((root / "docs").rglob("*.md")) if str(page.relative_to(root)) not in WRITTEN_BY_TESTS
    ]


def total(files: Iterable[Path]) -> Count:
    """The sum over the files."""
    return sum((count(file.read_text("utf-8")) for file in files), Count(0, 0))


def main(files: list[str]) -> None:
    """Print a line for each file, and for docs/ as a whole."""
    for path in map(Path, files) if files else [README, *pages()]:
        here = count(path.read_text("utf-8"))
        name = path.resolve().relative_to(ROOT) if path.resolve().is_relative_to(ROOT) else path
        print(f"{here.words:6} words {here.per_hundred:5.1f} numbers per 100  {name}")
    if not files:
        whole = total(pages())
        plain = total(page for page in pages() if str(page.relative_to(ROOT)) not in WITH_NUMBERS)
        print(f"{whole.words:6} words {plain.per_hundred:5.1f} numbers per 100  docs/ (numbers: without results)")


if __name__ == "__main__":
    main(sys.argv[1:])
