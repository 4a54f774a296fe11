"""What mkdocs makes the site of: the README, the pages under docs/ in the order in which docs/README.md lists them, the
files of the repository that pages link to, and a page of the public names. A hook of mkdocs.yml.

Pages may move: what stands where is read from the folders and the links.
"""

from __future__ import annotations

import ast
import logging
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parents[1]
RENAMED = {"README.md": "index.md", "docs/README.md": "contents.md"}
"""Pages of another name on the site: mkdocs would take each README for the page of its folder."""
API = "api.md"
FIRST = {"index.md": "Home", "contents.md": "Contents"}
ASSETS = {"assets/site.css": "docs_site.css", "assets/search_in_a_folder.js": "docs_search.js"}
"""Files of this folder by their names on the site."""
ELSEWHERE = "repository"
"""The folder of the site with what lies outside docs/."""
PICTURE = re.compile(
    r'<picture>\s*<source media="\(prefers-color-scheme: dark\)" srcset="([^"]+)">\s*'
    r'(<img [^>]*?src=")([^"]+)("[^>]*>)\s*</picture>'
)
LINK = re.compile(r"(\]\()([^)\s]+)(\))|((?:src|srcset|href)=\")([^\"]+)(\")")
CODE = re.compile(r"^(```|~~~)[^\n]*\n.*?^\1|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def on_startup(**_: Any) -> None:
    """Leave out the one warning that is no fault: names of operators are known when pyprune.ops is imported."""
    logging.getLogger("mkdocs.plugins.griffe").addFilter(
        lambda record: "pyprune.ops.__all__" not in record.getMessage()
    )


def on_files(files: Files, config: Any) -> Files:
    """Add what the pages link to, and put the pages in order."""
    from mkdocs.structure.files import File, Files, InclusionLevel

    by_uri = {file.src_uri: file for file in files if file.src_uri != "README.md"}
    for path in reachable(f"docs/{file.src_uri}" for file in files.documentation_pages()):
        uri = uri_of(path)
        if uri not in by_uri:
            by_uri[uri] = File.generated(config, uri, abs_src_path=str(ROOT / path))
            if uri.startswith(ELSEWHERE):
                by_uri[uri].inclusion = InclusionLevel.NOT_IN_NAV
    by_uri[API] = File.generated(config, API, content=api_page((ROOT / "pyprune" / "__init__.py").read_text("utf-8")))
    for uri, name in ASSETS.items():
        by_uri[uri] = File.generated(config, uri, abs_src_path=str(ROOT / ".ci" / name))
    pages = [uri for uri in by_uri if uri.endswith(".md") and not uri.startswith(ELSEWHERE)]
    config.nav = navigation((ROOT / "docs" / "README.md").read_text("utf-8"), pages)
    return Files(list(by_uri.values()))


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page with its links as the site has them."""
    path = path_of(page.file.src_uri)
    return markdown if path is None else themed(rewritten(markdown, path))


def on_post_build(config: Any, **_: Any) -> None:
    """The index of the search as a script too: a page that is read from a folder may not fetch a file."""
    index = Path(config.site_dir) / "search" / "search_index.json"
    index.with_suffix(".js").write_text(f"var __index = {index.read_text('utf-8')}", "utf-8")


on_post_build.mkdocs_priority = -100  # type: ignore[attr-defined]  # after the search has written its index


def themed(markdown: str) -> str:
    """Pictures for light and dark follow the site's button, not the system alone: the theme hides one of two images."""
    return PICTURE.sub(r"\g<2>\g<3>#only-light\g<4>\g<2>\g<1>#only-dark\g<4>", markdown)


def navigation(index: str, pages: list[str]) -> list[Any]:
    """mkdocs' list of pages: the first ones, those that docs/README.md links to, under its headings in bold letters and
    by the words of its links, then the page of names and what is listed nowhere.

    index: the text of docs/README.md. pages: the names of all pages on the site.
    """
    titles = dict(FIRST)
    sections: dict[str, list[str]] = {"": list(FIRST)}
    heading = ""
    for line in index.splitlines():
        bold = re.match(r"\*\*([^*,]+)\*\*", line)
        if bold:
            heading = bold[1]
        for match in LINK.finditer(line):
            path = resolved(match[2] or "", "docs/README.md")
            uri = None if path is None else uri_of(path)
            if uri in pages and uri not in titles:
                sections.setdefault(heading, []).append(uri)
                words = line[line.rindex("[", 0, match.start()) + 1 : match.start()]
                titles[uri] = words[:1].upper() + words[1:]
    rest = sorted(uri for uri in pages if uri not in (*titles, API))
    titled = {name: [{titles[uri]: uri} for uri in uris] for name, uris in sections.items()}
    return [*titled.pop(""), *({name: items} for name, items in titled.items()), {"Python API": API}, *rest]


def uri_of(path: str) -> str:
    """The site's name of a file of the repository."""
    if path in RENAMED:
        return RENAMED[path]
    return path.removeprefix("docs/") if path.startswith("docs/") else f"{ELSEWHERE}/{path}"


def path_of(uri: str) -> str | None:
    """The file of the repository that the site calls so; None for the page that is made here."""
    if uri == API:
        return None
    renamed = next((path for path, name in RENAMED.items() if name == uri), None)
    return renamed or (uri.removeprefix(f"{ELSEWHERE}/") if uri.startswith(f"{ELSEWHERE}/") else f"docs/{uri}")


def reachable(pages: Iterator[str]) -> list[str]:
    """README.md, the pages, and every file of the repository that one of them links to, directly or not."""
    waiting, seen = ["README.md", *pages], []
    while waiting:
        path = waiting.pop(0)
        if path in seen:
            continue
        seen.append(path)
        if path.endswith(".md"):
            waiting += [target for target in targets(path) if (ROOT / target).is_file()]
    return seen


def targets(path: str) -> list[str]:
    """The paths in the repository that a page links to."""
    text = CODE.sub("", (ROOT / path).read_text("utf-8"))
    links = (match[2] or match[5] for match in LINK.finditer(text))
    return [inside for link in links if (inside := resolved(link, path)) is not None]


def resolved(link: str, path: str) -> str | None:
    """The path in the repository that a link of the page `path` means; None for what is not in it."""
    link = link.partition("#")[0]
    if not link or re.match(r"[a-z][a-z+.-]*:", link):
        return None
    target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
    return None if target.startswith("..") else target


def rewritten(markdown: str, path: str) -> str:
    """The Markdown of the page `path`, each link to a file of the repository as the site has it.

    A link to a folder becomes its words alone: the site has no page for it. Code stays as it is.
    """
    here = posixpath.dirname(uri_of(path))

    def moved(match: re.Match[str]) -> str:
        opening, link, closing = (match[1], match[2], match[3]) if match[2] else (match[4], match[5], match[6])
        target = resolved(link, path)
        if target is None or not (ROOT / target).is_file():
            return match[0]
        uri, anchor = uri_of(target), "#" + link.partition("#")[2] if "#" in link else ""
        if not match[2] and uri.endswith(".md"):  # within HTML nothing turns a source's name into its page's
            uri = uri.removesuffix(".md") + ".html"
        return f"{opening}{posixpath.relpath(uri, here or '.')}{anchor}{closing}"

    def outside_code(text: str) -> str:
        return LINK.sub(moved, re.sub(r"(?<!!)\[([^\]\n]+)\]\(([^)\s]+)\)", unlinked, text))

    def unlinked(match: re.Match[str]) -> str:
        target = resolved(match[2], path)
        return match[1] if target is not None and (ROOT / target).is_dir() else match[0]

    parts, end = [], 0
    for code in CODE.finditer(markdown):
        parts += [outside_code(markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, outside_code(markdown[end:])])


def api_page(package: str) -> str:
    """The page of all public names, functions first; mkdocstrings fills it from their docstrings.

    package: the source of pyprune/__init__.py.
    """
    names = next(
        ast.literal_eval(node.value)
        for node in ast.parse(package).body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
    )
    kinds = {
        "Functions": [name for name in names if name[0].islower()],
        "Classes": [name for name in names if name[0].isupper()],
    }
    lines = ["# Python API", "", "Every public name of `import pyprune`. The commands say the same with `--help`.", ""]
    for kind, members in kinds.items():
        lines += [f"## {kind}", "", *(f"::: pyprune.{name}\n" for name in sorted(members))]
    return "\n".join(lines)
