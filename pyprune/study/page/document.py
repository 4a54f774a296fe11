"""An HTML page without a network: its style and script, tables, figures and files to download are inside it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import cache
from html import escape
from importlib.resources import files


def html_page(title: str, parts: Sequence[str]) -> str:
    """A page of such parts under a title; the title is escaped, the parts are HTML already."""
    head = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>",
        f"<style>{_beside('page.css')}</style></head><body>",
        # Shown by the script: without one it would do nothing.
        f'<header><h1>{escape(title)}</h1><button id="theme" type="button" hidden>Dark</button></header>',
        "<main>",
    ]
    return "\n".join([*head, *parts, "</main>", f"<script>{_beside('page.js')}</script>", "</body></html>"]) + "\n"


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """An HTML table of escaped cells that scrolls by itself when it is too wide.

    kind: "sortable" where a click on a column's name sorts by it, "prose" where cells are sentences and may wrap.
    """
    # Words stand left, numbers right. The first column is words, and so is all prose.
    others = range(1, len(header)) if kind != "prose" else ()
    words = {column for column in others if _words([row[column] for row in rows])}
    kinds = [' class="words"' if column in words else "" for column in range(len(header))]
    head = "".join(f"<th{css}>{escape(cell)}</th>" for cell, css in zip(header, kinds, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{css}>{escape(cell)}</td>" for cell, css in zip(row, kinds, strict=True)) + "</tr>"
        for row in rows
    )
    opening = f'<table class="{kind}">' if kind else "<table>"
    return f'<div class="scroll">{opening}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _words(column: Sequence[str]) -> bool:
    """Whether the cells of a column are words."""
    return any(column) and not any(cell[:1].isdigit() or cell[:1] in "+-±" for cell in column if cell)


def inline_figure(caption: str, image: bytes) -> str:
    """A heading and a PNG inside the page itself."""
    return f'<h2>{escape(caption)}</h2>\n<p><img alt="{escape(caption)}" src="{_data_uri("image/png", image)}"></p>'


def panels(drawings: Sequence[tuple[str, str]]) -> str:
    """SVG drawings, each with its caption, beside each other where the page is wide enough, else below each other."""
    drawn = (f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>" for caption, svg in drawings)
    return '<div class="panels">' + "".join(drawn) + "</div>"


def downloads(held: Sequence[tuple[str, str, bytes]]) -> str:
    """Links that save the files (name, media type, content) which the page holds."""
    links = (
        f'<a download="{escape(name)}" href="{_data_uri(media_type, content)}">{escape(name)}</a>'
        for name, media_type, content in held
    )
    return '<p class="downloads">Save ' + " ".join(links) + "</p>"


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


@cache
def _beside(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")
