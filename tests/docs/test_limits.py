"""README and docs stay short: words of prose, numbers in a hundred of them."""

from __future__ import annotations

from bench.pages import prose
from bench.pages.prose import count, pages, total


def test_the_readme_is_short():
    text = prose.README.read_text("utf-8")
    here = count(text)
    assert here.words < prose.README_WORDS
    assert here.per_hundred < prose.README_NUMBERS
    assert len(text.splitlines()) <= 145


def test_the_docs_are_short():
    assert total(pages()).words < prose.DOCS_WORDS


def test_numbers_stand_on_the_benchmarks_page():
    for page in pages():
        if str(page.relative_to(prose.ROOT)) not in prose.WITH_NUMBERS:
            here = count(page.read_text("utf-8"))
            assert here.numbers <= max(prose.DOCS_NUMBERS * here.words / 100, 2), page
    plain = total(page for page in pages() if str(page.relative_to(prose.ROOT)) not in prose.WITH_NUMBERS)
    assert plain.per_hundred < prose.DOCS_NUMBERS


def test_what_counts_is_what_the_rules_say():
    markdown = (
        """# Two words

A [link](https://example.org/1/2/3) of `code 17 <x>` and 3.5x, 20 % or 4,096 rows on an H100.

- an item
    with two more

| short | 17 |
|---|---|
| """
        + "word " * 26
        + """| 9 |

<!-- nothing of this 1 -->
```python
x = 12
```

    indented code 99

![picture 3](file.svg)
"""
    )
    here = count(markdown)
    assert here.words == 2 + 14 + 2 + 3 + 26
    assert here.numbers == 3
