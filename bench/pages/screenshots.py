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
                image = small(taken(page))
            if len(image) > LARGEST:
                sys.exit(f"comparison-{scheme}.png: {len(image)} bytes; at most {LARGEST} are kept in the repository")
            write_bytes(FIGURES / f"comparison-{scheme}.png", image)


def taken(page: Any) -> bytes:
    """The page down to the element BELOW, as PNG."""
    height = page.locator(BELOW).bounding_box()["y"]
    return page.screenshot(full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": height})


def small(image: bytes) -> bytes:
    """The PNG with a palette of its 256 most frequent colours; each other one becomes the nearest of them."""
    import numpy as np
    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))
    colours, place, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True, return_counts=True)
    palette = colours[np.argsort(-counts, kind="stable")[:256]]
    distance = ((colours[:, None].astype(int) - palette[None]) ** 2).sum(-1)
    picture = Image.fromarray(distance.argmin(1).astype(np.uint8)[place.reshape(pixels.shape[:2])])
    picture.putpalette(palette.tobytes())
    target = io.BytesIO()
    picture.save(target, "png", optimize=True)
    return target.getvalue()


if __name__ == "__main__":
    main()
