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


def imported(name: str) -> Any:
    """A module of .ci/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def hook() -> Any:
    return imported("docs_site")


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
        {"Home": "index.md"}, {"Contents": "contents.md"}, {"A": "a.md"}, {"B": "guides/b.md"},
        {"Guides": [{"C": "guides/c.md"}]}, {"Python API": "api.md"}, "new/lost.md",
    ]  # fmt: skip


def test_the_index_lists_all_pages_under_its_headings(hook):
    docs = ROOT / "docs"
    pages = [hook.uri_of(f"docs/{file.relative_to(docs).as_posix()}") for file in docs.rglob("*.md")]
    *listed, last = hook.navigation((docs / "README.md").read_text("utf-8"), [*pages, "index.md", "api.md"])
    assert last == {"Python API": "api.md"}  # nothing is left over behind it
    assert listed[:3] == [{"Home": "index.md"}, {"Contents": "contents.md"}, {"Quickstart": "quickstart.md"}]
    assert sum(isinstance(value, list) for item in listed for value in item.values()) >= 3


def test_pictures_for_light_and_dark_become_one_image_for_each(hook):
    picture = (
        '<picture>\n  <source media="(prefers-color-scheme: dark)" srcset="figures/a-dark.svg">\n'
        '  <img alt="a plot" src="figures/a-light.svg" width="700">\n</picture>'
    )
    assert hook.themed(f"before {picture} after") == (
        'before <img alt="a plot" src="figures/a-light.svg#only-light" width="700">'
        '<img alt="a plot" src="figures/a-dark.svg#only-dark" width="700"> after'
    )
    readme = (ROOT / "README.md").read_text("utf-8")
    assert hook.themed(hook.rewritten(readme, "README.md")).count("#only-dark") == readme.count("<picture>") > 0


def test_what_a_docstring_says_of_parameters_becomes_a_list():
    pytest.importorskip("griffe")
    lists = imported("docstring_lists")
    docstring = """One line on what it does.

`model`: what
`load` takes. input_ids `[S, T]`: token ids; ratio, count: how much goes;
Exactly one of both. options and others: as in `load`. model is not a start here: it has no colon behind it
InputError for anything else.
Source: a paper."""
    assert (
        lists.listed(docstring, {"model", "input_ids", "ratio", "count"})
        == """One line on what it does.

- `model`: what `load` takes.
- `input_ids` `[S, T]`: token ids.
- `ratio`, `count`: how much goes.
- Exactly one of both.
- `options` and `others`: as in `load`. model is not a start here: it has no colon behind it

InputError for anything else.

Source: a paper."""
    )
    alone = "A sentence. ratio: is the only name here."
    assert lists.listed(alone, {"ratio"}) == alone


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
        assert LOADED.findall(text) == [], page


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
        assert page.errors == []
        assert from_network(page) == []


@pytest.mark.full
def test_the_search_works_in_a_folder(browser, site):
    with opened(browser, site / "guides" / "study-a-width.html", 1280) as page:
        page.locator("input.md-search__input").fill("frontier")
        first = page.locator(".md-search-result__link").first
        first.wait_for()
        assert "frontier" in first.inner_text().lower()
        assert page.errors == []
        assert from_network(page) == []


@pytest.mark.full
def test_the_plot_follows_the_button_for_light_and_dark(browser, site):
    with opened(browser, site / "index.html", 1280, "light") as page:
        shown = page.locator('img[src*="quality-against-speed"]:visible')
        for name in ("light", "dark"):
            assert shown.count() == 1
            assert f"-{name}.svg" in shown.get_attribute("src")
            page.locator("form[data-md-component=palette] label:visible").click()
