"""The docstrings of the site: what they say of each parameter stands in a list there, and in the source in sentences.

An extension of griffe, which reads the sources for mkdocstrings (mkdocs.yml).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from griffe import Class, Extension, Function

LAST = re.compile(r"\n(?=Raises |InputError|Source: )|(?<=\.)\s+(?=(?:Raises )?InputError (?:for|when|where|if)\b)")
"""What has a paragraph of its own."""


class DocstringLists(Extension):
    """Rewrites the docstring of each function, by its parameters, and of each class, by its fields."""

    def on_function_instance(self, *, func: Function, **_: Any) -> None:
        """A function or method has been read."""
        if func.docstring is not None:
            func.docstring.value = listed(func.docstring.value, {param.name for param in func.parameters})

    def on_class_members(self, *, cls: Class, **_: Any) -> None:
        """A class has been read with its members."""
        if cls.docstring is not None:
            init = cls.members.get("__init__")
            names = {*cls.members, *({param.name for param in init.parameters} if isinstance(init, Function) else ())}
            cls.docstring.value = listed(cls.docstring.value, names)


def listed(docstring: str, names: Collection[str]) -> str:
    """Markdown: every paragraph in which two or more sentences begin with names and a colon becomes a list of them."""
    paragraphs = re.split(r"\n\s*\n", LAST.sub("\n\n", docstring.strip()))
    return "\n\n".join(_paragraph(paragraph, names) for paragraph in paragraphs)


def _paragraph(text: str, names: Collection[str]) -> str:
    name = "|".join(map(re.escape, sorted({*names, "options", "others"}, key=len, reverse=True)))
    one = rf"`?(?:{name})(?:`| `?\[[^]]*\]`?|\b)(?: `\[[^]]*\]`)?"
    start = re.compile(rf"(?:^|(?<=[.;] ))(?:(?P<names>{one}(?:(?:, | and ){one})*)(?=:| as in )|Exactly one of )")
    line = " ".join(text.split())
    starts = list(start.finditer(line))
    if sum(match["names"] is not None for match in starts) < 2:
        return text
    ends = [match.start() for match in starts[1:]] + [len(line)]
    items = [_item(line[match.start() : end], match["names"]) for match, end in zip(starts, ends, strict=True)]
    return "\n".join([*([line[: starts[0].start()].strip(), ""] if starts[0].start() else []), *items])


def _item(sentence: str, names: str | None) -> str:
    """One element of the list, its names in code letters."""
    sentence = re.sub(";$", ".", sentence.strip())
    if names is None:
        return f"- {sentence}"
    marked = re.sub(r"(?!and\b)`?\b([A-Za-z_]\w*)`?(?: ?`?(\[[^]]*\])`?)?", _in_code, names)
    return f"- {marked}{sentence[len(names) :]}"


def _in_code(match: re.Match[str]) -> str:
    return f"`{match[1]}`" + (f" `{match[2]}`" if match[2] else "")
