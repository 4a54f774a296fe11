"""`make screenshots`: pictures of the comparison's page for docs/figures/, in headless Chromium, light and dark.

They show what a reader gets, so they are made from a committed result. No test compares them: letters differ from one
machine to another.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.pages.prose import ROOT
from bench.pages.results import COMPARISON_BY_TASKS, RESULTS
from pyprune.files import write_bytes
from pyprune.study.redraw import redraw
from tests.pages.browser import launched, missing, opened

FIGURES = ROOT / "docs" / "figures"
WIDTH, BELOW = 1120, ".downloads"
"""The picture ends above this element: it has the verdict and the plots."""
LARGEST = 150_000
"""Bytes of a picture: the repository keeps every version of it."""


def main() -> None:
    """Write `comparison-light.png` and `comparison-dark.png`."""
    if reason := missing():
        sys.exit(reason)
    with tempfile.TemporaryDirectory() as folder, launched() as browser:
        redraw([RESULTS / COMPARISON_BY_TASKS], Path(folder) / "page")
        for scheme in ("light", "dark"):
            with opened(browser, Path(folder) / "page" / "index.html", WIDTH, scheme) as page:
                image = small(picture(page))
            if len(image) > LARGEST:
                sys.exit(f"comparison-{scheme}.png: {len(image)} bytes; at most {LARGEST} are kept in the repository")
            write_bytes(FIGURES / f"comparison-{scheme}.png", image)


def picture(page: Any) -> bytes:
    """The page down to the element BELOW, as PNG."""
    height = page.locator(BELOW).bounding_box()["y"]
    return page.screenshot(full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": height})


def small(image: bytes) -> bytes:
    """The same picture, written as small as PNG allows: a palette would change the colours of the plots."""
    from PIL import Image

    target = io.BytesIO()
    Image.open(io.BytesIO(image)).convert("RGB").save(target, "png", optimize=True)
    return target.getvalue()


if __name__ == "__main__":
    main()
