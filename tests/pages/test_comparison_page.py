"""The comparison's page as its reader has it: in a browser, at both widths, in light and dark."""

from __future__ import annotations

import csv
import io

import pytest

from pyprune.study.report import render, samples_csv
from tests.pages.browser import WIDTHS, from_network, opened, sideways


@pytest.fixture
def page_file(results, tmp_path):
    """A page with all its parts: rows that were cut, a row without memory, a long name and command."""
    results["rows"][1]["pruning"] = {"blocks": [3, 4, 9]}
    results["rows"][2]["pruning"] = {"neurons": {"0": list(range(400))}, "kv_groups": {"5": [0]}}
    results["rows"][3]["pruning"] = {"as": "wanda-sp 20%", "pad_to": 64}
    results["command"] += " --methods wanda-sp,flap,llm-pruner" * 6
    results["model"]["name"] = "a-model-with-a-long-name-such-as-hubs-have-them-70b-instruct-v0.3"
    results["oom"] = [
        {
            "row": "depth 20%", "engine": "hf", "batch": 64, "output_tokens": 16, "planned_bytes": 2**33,
            "needed_bytes": 2**33, "available_bytes": 2**32,
        }
    ]  # fmt: skip
    render(results, tmp_path / "report")
    return tmp_path / "report" / "index.html"


def test_the_page_of_these_results_is_one_file(page_file):
    assert page_file.stat().st_size > 20_000
    assert 'id="theme"' in page_file.read_text("utf-8")


@pytest.mark.full
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", WIDTHS)
def test_the_page_fits_its_screen_and_needs_nothing_else(browser, page_file, device, scheme):
    with opened(browser, page_file, WIDTHS[device], scheme) as page:
        assert sideways(page) == 0
        assert page.errors == []
        assert from_network(page) == []
        # The verdict and the beginning of the plot are on the first screen.
        assert page.locator(".verdict").bounding_box()["y"] < 300
        assert page.locator(".panels svg").first.bounding_box()["y"] < 844
        # No cell of a table is squeezed to a letter a line.
        heights = page.eval_on_selector_all("table.sortable tbody tr", "rows => rows.map(row => row.offsetHeight)")
        assert max(heights) < 120
        letters = page.eval_on_selector_all(
            ".panels svg text", "texts => texts.map(text => text.getBoundingClientRect().height)"
        )
        assert min(letters) > 7


CONTRAST = """() => {
  const number = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const luminance = colour => number(colour).map(v => v / 255).map(v => v <= .04045 ? v / 12.92
    : ((v + .055) / 1.055) ** 2.4).reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ground = luminance(getComputedStyle(document.body).backgroundColor);
  return ["p", "th", "td", "a", "h1", "figcaption"].map(name => {
    const ink = luminance(getComputedStyle(document.querySelector(name)).color);
    return (Math.max(ink, ground) + .05) / (Math.min(ink, ground) + .05);
  });
}"""
"""The contrast of letters and ground by WCAG 2's formula."""


@pytest.mark.full
def test_light_and_dark_follow_the_system_until_the_button_says_otherwise(browser, page_file):
    def ground(page):
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    grounds = {}
    for scheme, other in (("light", "Dark"), ("dark", "Light")):
        with opened(browser, page_file, 1280, scheme) as page:
            grounds[scheme] = ground(page)
            assert min(page.evaluate(CONTRAST)) >= 4.5
            assert page.locator("#theme").inner_text() == other
            page.locator("#theme").click()
            grounds[f"{scheme}, pressed"] = ground(page)
            assert min(page.evaluate(CONTRAST)) >= 4.5
    assert grounds["light"] == grounds["dark, pressed"] == "rgb(255, 255, 255)"
    assert grounds["dark"] == grounds["light, pressed"] != grounds["light"]


@pytest.mark.full
def test_timings_are_sorted_by_a_click_and_missing_ones_stay_last(browser, page_file):
    with opened(browser, page_file, 1280) as page:
        table = page.locator("table.sortable").last

        def column(name):
            names = table.locator("th").all_inner_texts()
            return table.locator(f"tbody td:nth-child({names.index(name) + 1})").all_inner_texts()

        page.get_by_role("button", name="latency (s)").click()
        values = column("latency (s)")
        assert values[-1] == ""
        numbers = [float(value) for value in values[:-1]]
        assert numbers == sorted(numbers)
        assert numbers[0] < numbers[-1]
        page.get_by_role("button", name="latency (s)").click()
        values = column("latency (s)")
        assert values[-1] == ""
        assert [float(value) for value in values[:-1]] == sorted(numbers, reverse=True)
        table.get_by_role("button", name="engine").click()
        assert column("engine") == sorted(column("engine"))


@pytest.mark.full
def test_raw_samples_are_saved_from_the_page(browser, page_file, results):
    with opened(browser, page_file, 390) as page:
        for name in ("results.json", "table.csv", "samples.csv"):
            with page.expect_download() as waiting:
                page.locator(f'a[download="{name}"]').click()
            assert waiting.value.suggested_filename == name
            with open(waiting.value.path(), "rb") as file:
                saved = file.read()
            if name == "samples.csv":
                assert saved.decode() == samples_csv(results)
                assert len(list(csv.reader(io.StringIO(saved.decode())))) == 49
            else:
                assert saved == (page_file.parent / name).read_bytes()
