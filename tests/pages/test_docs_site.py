"""The site of the documentation: links as it has them, every public name, nothing from a network."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pyprune
from tests.pages.browser import WIDTHS, from_network, opened, sideways

ROOT = Path(__file__).resolve().parents[2]

LOADED = re.compile(r"<(?:script|img|link|source|iframe)\b[^>]*?(?:src|href|srcset)=\"?((?:https?:)?//[^\s\">]+)")
"""What a page loads from an address."""


@pytest.fixture(scope="module")
def hook() -> Any:
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / ".ci" / "docs_site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_lead_where_the_site_has_the_files(hook):
    page = "docs/guides/extend.md"
    assert hook.rewritten("[a](../quickstart.md#install)", page) == "[a](../quickstart.md#install)"
    assert hook.rewritten("[a](../../README.md)", page) == "[a](../index.md)"
    assert hook.rewritten("[a](../README.md)", page) == "[a](../contents.md)"
    assert hook.rewritten("[a](../../pyproject.toml)", page) == "[a](../repository/pyproject.toml)"
    assert hook.rewritten("[a](../../CONTRIBUTING.md#x)", page) == "[a](../repository/CONTRIBUTING.md#x)"
    assert hook.rewritten("see [the examples](../../examples)", page) == "see the examples"
    assert hook.rewritten("[a](docs/quickstart.md)", "README.md") == "[a](quickstart.md)"


def test_links_in_html_name_the_pages_that_are_made(hook):
    assert hook.rewritten('<a href="docs/quickstart.md#x">', "README.md") == '<a href="quickstart.html#x">'
    figures = sorted((ROOT / "docs" / "figures").glob("*.svg"))
    for figure in figures:
        assert (
            hook.rewritten(f'<img src="docs/figures/{figure.name}">', "README.md")
            == f'<img src="figures/{figure.name}">'
        )
    assert figures


@pytest.mark.parametrize(
    "text",
    [
        "`[a](../../README.md)`",
        "```python\nlinks[a](../../README.md)\n```\n",
        "[a](https://example.org/README.md)",
        "[a](#there)",
        "[a](not-there.md)",
        "[a](../../../outside.md)",
    ],
)
def test_code_addresses_and_what_is_not_there_stay_as_they_are(hook, text):
    assert hook.rewritten(text, "docs/guides/extend.md") == text


def test_pages_stand_as_the_index_of_the_docs_lists_them(hook):
    index = """Start with [a](a.md) or [b](guides/b.md).

**Guides**, in order

- [c](guides/c.md), [again](a.md), [elsewhere](../CONTRIBUTING.md), [not there](d.md)
"""
    pages = ["a.md", "api.md", "contents.md", "guides/b.md", "guides/c.md", "index.md", "new/lost.md"]
    assert hook.navigation(index, pages) == [
        "index.md", "contents.md", "a.md", "guides/b.md", {"Guides": ["guides/c.md"]}, "api.md", "new/lost.md",
    ]  # fmt: skip


def test_the_index_lists_all_pages_under_its_headings(hook):
    docs = ROOT / "docs"
    pages = [hook.uri_of(f"docs/{file.relative_to(docs).as_posix()}") for file in docs.rglob("*.md")]
    *listed, last = hook.navigation((docs / "README.md").read_text("utf-8"), [*pages, "index.md", "api.md"])
    assert last == "api.md"  # nothing is left over behind it
    assert listed[:3] == ["index.md", "contents.md", "quickstart.md"]
    assert sum(isinstance(item, dict) for item in listed) >= 3


def test_every_public_name_is_on_the_page_of_names(hook):
    page = hook.api_page((ROOT / "pyprune" / "__init__.py").read_text("utf-8"))
    assert sorted(re.findall(r"^::: pyprune\.(\w+)$", page, re.MULTILINE)) == sorted(pyprune.__all__)


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed: `make test-full` installs it")
    folder = tmp_path_factory.mktemp("site")
    # A proxy that is not there: what needs the network fails.
    nowhere = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "NO_MKDOCS_2_WARNING": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, env={**os.environ, **nowhere}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return folder


@pytest.mark.full
def test_the_site_is_built_and_loads_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        text = page.read_text("utf-8")
        loaded = re.findall(
            r"<(?:script|img|link|source|iframe)\b[^>]*?(?:src|href|srcset)=\"?((?:https?:)?//[^\s\">]+)", text
        )
        assert loaded == [], page


@pytest.mark.full
def test_every_public_name_has_its_docstring_on_the_site(site):
    text = (site / "api.html").read_text("utf-8")
    for name in pyprune.__all__:
        section = re.search(rf'id="pyprune\.(?:[\w.]+\.)?{name}"', text)
        assert section is not None, name
    assert "unpruned" in text
    assert text.count('class="doc doc-object') >= len(pyprune.__all__)


@pytest.mark.full
@pytest.mark.parametrize("device", WIDTHS)
@pytest.mark.parametrize("name", ["index.html", "quickstart.html", "api.html", "benchmarks.html"])
def test_pages_of_the_site_fit_the_screen_and_need_nothing_else(browser, site, name, device):
    with opened(browser, site / name, WIDTHS[device], "dark") as page:
        assert sideways(page) == 0
        assert from_network(page) == []
