"""A headless Chromium for the tests of pages, at the widths of a desktop and a telephone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = {"desktop": 1280, "telephone": 390}
MINUTES_5 = 300_000
"""Milliseconds for each step: the machine may be busy with other tests."""


def missing() -> str:
    """Why there is no browser to drive, or nothing."""
    try:
        import playwright.sync_api  # noqa: F401  # whether it is there
    except ImportError:
        return "playwright is not installed: `make test-full` installs it"
    return "" if program() else f"no browser: none of {', '.join(NAMES)} is on the PATH"


def program() -> str | None:
    """The browser on this machine."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def launched() -> Iterator[Any]:
    """The browser, ended when done."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=program(), args=["--no-sandbox", "--disable-gpu"], timeout=MINUTES_5
        )
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, path: Path, width: int, scheme: str = "light") -> Iterator[Any]:
    """The page of a file at a width, in a scheme; its `requests` to anything but files, and its `errors`, are lists."""
    context = browser.new_context(
        viewport={"width": width, "height": 844}, color_scheme=scheme, accept_downloads=True, device_scale_factor=1
    )
    context.set_default_timeout(MINUTES_5)
    page = context.new_page()
    page.requests, page.errors = [], []
    page.on("request", lambda request: page.requests.append(request.url))
    page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(path.resolve().as_uri(), timeout=MINUTES_5)
    yield page
    context.close()


def sideways(page: Any) -> int:
    """By how many pixels the page as a whole scrolls to the side."""
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def from_network(page: Any) -> list[str]:
    """What the page asked for that is neither a file nor within it."""
    return [url for url in page.requests if not url.startswith(("file:", "data:", "blob:"))]
