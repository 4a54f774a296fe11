"""Every internal link of the Markdown files leads to a file, and to a heading where it names one."""

from __future__ import annotations

import re

import pytest

from tests.docs.blocks import ROOT, pages

OTHERS = (
    "CONTRIBUTING.md", "CHANGELOG.md", "bench/NOTES.md", "bench/README.md", "bench/gpu_check/README.md",
    "csrc/README.md",
)  # fmt: skip
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
CODE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
    """The anchors of the headings, as GitHub makes them."""
    titles = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title) for title in HEADING.findall(CODE.sub("", text)))
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*pages(), *OTHERS])
def test_internal_links_lead_somewhere(page: str):
    text = CODE.sub("", (ROOT / page).read_text("utf-8"))
    for target in ("".join(found) for found in LINK.findall(text)):
        if re.match(r"https?:|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(file.read_text("utf-8")), f"{page}: {target}"


def test_every_page_is_linked_from_the_index():
    index = (ROOT / "docs" / "README.md").read_text("utf-8")
    for page in pages()[1:]:
        assert page == "docs/README.md" or f"({page.removeprefix('docs/')})" in index, page


def test_paths_of_pages_in_the_code_exist():
    sources = [
        file
        for folder in ("pyprune", "triton_kernels", "csrc", "bench", "tests")
        for file in (ROOT / folder).rglob("*.*")
    ]
    for file in sources:
        if file.suffix in (".py", ".h", ".cpp", ".cu", ".toml"):
            for path in re.findall(r"\bdocs/[\w/-]+\.md\b", file.read_text("utf-8")):
                assert (ROOT / path).exists(), f"{file}: {path}"
