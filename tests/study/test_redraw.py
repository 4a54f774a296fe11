"""Figures and pages from result files alone."""

from __future__ import annotations

import json

import pytest

from pyprune.errors import InputError
from pyprune.files import write_json
from pyprune.scoring import Scores
from pyprune.study.quality_plot import drawn, fingerprint
from pyprune.study.redraw import redraw
from pyprune.study.report import render

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def files(tmp_path):
    """Three files of scores, of one model."""
    paths = []
    for name, values in (("novels", [9, 1, 2, 8]), ("mail <b>", [9, 2, 1, 8]), ("code", [7, 8, 2, 1])):
        paths.append(tmp_path / f"{name}.json")
        units = [("block", index) for index in range(4)]
        scores = Scores("model", "ppl", "block", 1.0, units, values, {}, 100, [20] * 4)
        scores.to_json(paths[-1])
    return paths


@pytest.mark.slow
def test_a_comparison_is_drawn_again_from_its_results_byte_for_byte(results, tmp_path):
    render(results, tmp_path / "first")
    written = redraw([tmp_path / "first" / "results.json"], tmp_path / "again")
    assert written == [tmp_path / "again" / "index.html"]
    for name in ("results.json", "table.csv", "index.html", "figure1.png", "figure2.png"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()


def test_one_figure_is_the_bars_of_one_or_the_map_of_several(files, tmp_path):
    for given in (files[:1], files):
        path = tmp_path / f"{len(given)}.png"
        assert redraw(given, path, count=1) == [path]
        assert path.read_bytes().startswith(PNG)
    assert (tmp_path / "1.png").read_bytes() != (tmp_path / "3.png").read_bytes()


@pytest.mark.slow
def test_a_directory_holds_the_bars_of_each_and_what_several_make_together(files, tmp_path):
    bars = {f"bars-{path.stem}.png" for path in files}
    for count, more in ((1, set()), (2, {"map.png", "both.png"}), (3, {"map.png"})):
        out = tmp_path / f"report {count}"
        written = redraw(files[:count], out, count=1)
        expected = {"index.html", *more, *(f"bars-{path.stem}.png" for path in files[:count])}
        assert {path.name for path in written} == {path.name for path in out.iterdir()} == expected
    assert bars < {path.name for path in (tmp_path / "report 3").iterdir()}


def test_scores_written_before_files_named_a_format_are_known_by_their_shape(files, tmp_path):
    data = json.loads(files[0].read_text("utf-8"))
    assert data.pop("format") == "pyprune-scores/1"
    write_json(tmp_path / "old.json", data)
    assert redraw([tmp_path / "old.json"], tmp_path / "old.png") == [tmp_path / "old.png"]
    assert redraw([files[0]], tmp_path / "new.png") == [tmp_path / "new.png"]
    assert (tmp_path / "old.png").read_bytes() == (tmp_path / "new.png").read_bytes()


def test_the_page_names_what_goes_under_each_pair_and_escapes_names(files, tmp_path):
    redraw(files, tmp_path / "out", count=1)
    page = (tmp_path / "out" / "index.html").read_text("utf-8")
    words, numbers = '<td>novels</td><td class="words">mail &lt;b&gt;</td>', "<td>0.800</td><td>0.667</td>"
    assert f"{words}{numbers}<td>1</td><td></td><td>2</td>" in page
    assert "mail <b>" not in page
    assert page.count("data:image/png;base64,") == 4


def test_files_of_one_name_are_told_apart(files, tmp_path):
    (tmp_path / "other").mkdir()
    again = tmp_path / "other" / "novels.json"
    again.write_bytes(files[0].read_bytes())
    names = {path.name for path in redraw([files[0], again], tmp_path / "out")}
    assert {"bars-novels-1.png", "bars-novels-2.png"} < names


def test_what_cannot_be_drawn_is_refused_before_anything_is_written(files, results, tmp_path):
    write_json(tmp_path / "results.json", results)
    write_json(tmp_path / "new.json", {**results, "format": "pyprune-comparison/9"})
    write_json(tmp_path / "torn.json", {"format": results["format"], "rows": []})
    write_json(tmp_path / "list.json", [1])
    write_json(tmp_path / "unlabelled.json", {"model": "model", "values": [1.0]})
    write_json(tmp_path / "null.json", {**json.loads(files[0].read_text("utf-8")), "format": None})
    refusals = [
        (["results.json", "novels.json"], "out", {}, "2 files with results of pyprune-comparison/1, pyprune-scores/1"),
        (
            ["new.json"],
            "out",
            {},
            "format 'pyprune-comparison/9'; pyprune-scores/1, pyprune-comparison/1, pyprune-recipe/1, *",
        ),
        (["torn.json"], "out", {}, "torn.json: incomplete results"),
        (["list.json"], "out", {}, "list.json: names no format; a JSON object with .* is expected"),
        (["none.json"], "out", {}, "none.json: No such file"),
        (["results.json"], "out.png", {}, "a directory is expected"),
        (["results.json"], "out", {"count": 2}, "--count 2: belongs to scores"),
        (["novels.json"], "novels.json", {}, "is a file"),
        (["novels.json"], "out", {"count": 9}, "1 to 4 units"),
        (["novels.json"], "out.png", {"protect": "9"}, "protect 9"),
    ]
    for names, out, amount, told in refusals:
        with pytest.raises(InputError, match=told):
            redraw([tmp_path / name for name in names], tmp_path / out, **amount)
        assert not (tmp_path / "out").exists()
        assert not (tmp_path / "out.png").exists()
    assert json.loads((tmp_path / "novels.json").read_text("utf-8"))["model"] == "model"


def test_a_comparison_gives_one_figure_of_perplexity_against_speed(results, tmp_path):
    write_json(tmp_path / "results.json", results)
    images = []
    for name, dark in (("light.svg", False), ("again.svg", False), ("dark.svg", True)):
        assert redraw([tmp_path / "results.json"], tmp_path / name, dark=dark) == [tmp_path / name]
        images.append((tmp_path / name).read_text("utf-8"))
    light, again, dark = images
    assert light == again != dark
    points = drawn(results)
    assert {point["engine"] for point in points} == {"hf", "pyprune"}
    assert not any("padded" in point["method"] for point in points)
    assert all(fingerprint(points) in image and image.count("<svg") == 1 for image in images)


def test_a_figure_of_other_points_has_another_fingerprint(results):
    before = fingerprint(drawn(results))
    results["rows"][1]["ppl"] *= 1.01
    assert fingerprint(drawn(results)) != before
    with pytest.raises(InputError, match="batch 2: the comparison holds no times"):
        drawn(results, batch=2)


def test_a_figure_in_svg_is_of_one_comparison(files, results, tmp_path):
    write_json(tmp_path / "results.json", results)
    write_json(tmp_path / "torn.json", {"format": results["format"], "rows": []})
    refusals = [
        (["results.json", "novels.json"], "out.svg", {}, "results.json of one comparison"),
        (["results.json"], "out.svg", {"count": 2}, "of the options --dark alone"),
        (["novels.json"], "out.svg", {}, "pyprune-comparison/1 of pyprune compare is expected"),
        (["torn.json"], "out.svg", {}, "torn.json: incomplete results"),
        (["novels.json"], "out.png", {"dark": True}, "a name that ends in .svg is expected"),
    ]
    for names, out, options, message in refusals:
        with pytest.raises(InputError, match=message):
            redraw([tmp_path / name for name in names], tmp_path / out, **options)
        assert not (tmp_path / out).exists()
