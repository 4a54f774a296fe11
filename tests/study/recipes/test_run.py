"""A small recipe runs, is interrupted and resumes, and its page is drawn again."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pyprune.errors import InputError
from pyprune.study.labels import styles
from pyprune.study.recipes import iterating, models, report
from pyprune.study.recipes import run as module
from pyprune.study.recipes import store as store_module
from pyprune.study.recipes.figures import figures, series_looks
from pyprune.study.recipes.recipe import FIGURES
from pyprune.study.recipes.run import RecipeResult, recipe
from pyprune.study.redraw import redraw
from tests.study.recipes.small import SMALL, iterative

COMMITTED = Path(__file__).parents[3] / "bench" / "results" / "recipes"


def measured(results):
    """What of results does not depend on the time of day."""
    keys = ("name", "values", "errors", "removed", "key", "retrained", "paper")
    return [{key: row[key] for key in keys} for row in results["rows"]], results["scores"]


def test_a_recipe_runs_from_end_to_end(finished):
    results, out = finished
    assert sorted(path.name for path in out.iterdir()) == [
        "figure.png", "index.html", "results.json", "table.csv", "table.md"
    ]  # fmt: skip
    assert not out.with_name("out.unfinished").exists()
    rows = {row["name"]: row for row in results["rows"]}
    # Groups stand together, in the order in which they first come.
    assert list(rows) == ["Original", "Blocks 25%", "FLAP 25%", "Trained 25%", "Blocks 45%"]
    assert rows["Blocks 25%"]["values"]["blocks"] == 3
    assert rows["FLAP 25%"]["values"]["parameters"] == pytest.approx(
        rows["Blocks 25%"]["values"]["parameters"], rel=0.005
    )
    assert rows["Trained 25%"]["values"]["ppl"] != rows["Blocks 25%"]["values"]["ppl"]
    assert rows["Trained 25%"]["made"]["trained_steps"] == 1
    assert rows["Blocks 25%"]["values"]["ppl"] == rows["Blocks 25%"]["values"]["ppl:novel"]
    assert rows["FLAP 25%"]["paper"] == {"ppl": 17.0}
    page = (out / "index.html").read_text()
    assert "Pruning takes less memory. It holds here, in 3 comparisons" in page
    assert "results are for another model; these are for shape:tiny" in page
    assert 'src="data:image/png' in page
    assert page.count("<script") == page.count("<script>") == 1  # the page's own, which loads nothing
    assert 'src="http' not in page


@pytest.mark.parametrize(
    ("device", "words"), [("cpu", []), ("cuda", ["--device", "cuda"]), ("cuda:1", ["--device", "cuda:1"])]
)
def test_the_command_that_repeats_a_run_names_its_gpu(device, words):
    decoder = SimpleNamespace(name="tiny", device=torch.device(device))
    command = module._command("table5", "shape:tiny", decoder, "quick", {}, None)
    assert command.split() == ["pyprune", "recipe", "table5", "shape:tiny", "--budget", "quick", *words]


def test_the_page_is_drawn_again_from_the_results_alone(finished, tmp_path):
    _, out = finished
    redraw([out / "results.json"], tmp_path / "again")
    for name in ("table.csv", "table.md", "index.html"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()


@pytest.mark.slow
def test_every_kind_of_figure_is_drawn(finished):
    results = copy.deepcopy(finished[0])
    names = [row["name"] for row in results["rows"]]
    for row in results["rows"]:
        row["timed_as"] = "original" if row["method"] == "original" else row["name"]
    results["timings"] = [
        {
            "protocol": {"input_tokens": 4, "output_tokens": [2]},
            "batches": [1, 4],
            "timings": [
                {"row": name if name != "Original" else "original", "engine": engine, "batch": batch,
                 "output_tokens": 2, "seconds": [1.0 + place, 1.1 + place]}
                for place, name in enumerate(names) for engine in ("hf", "pyprune") for batch in (1, 4)
            ],
            "oom": [],
        }
    ]  # fmt: skip
    drawn = {}
    for kind in FIGURES:
        results["recipe"]["figure"]["kind"] = kind
        drawn[kind] = figures(results)
        assert all(image.startswith(b"\x89PNG") for _, image in drawn[kind].values())
    assert {kind: list(images) for kind, images in drawn.items()} == {
        "none": [], "lines": ["figure.png"], "quality-speed": ["speed.png"], "latency-batch": ["latency.png"],
        "scores": ["scores-ppl.png", "scores-magnitude.png", "map.png"],
    }  # fmt: skip
    caption, image = drawn["quality-speed"]["speed.png"]
    assert caption == "Quality, latency and throughput, 4 input tokens"
    for row in results["rows"]:
        row["values"] = {name: value for name, value in row["values"].items() if not name.startswith("ppl")}
    results["recipe"]["figure"]["kind"] = "quality-speed"
    alone_caption, alone = figures(results)["speed.png"]
    assert alone_caption == "Latency and throughput, 4 input tokens"
    # Half as wide and as high: no empty panels are left.
    assert [2 * size for size in pixels(alone)[:1]] + [pixels(alone)[1]] == pixels(image)


def pixels(png: bytes) -> list[int]:
    """Width and height of a PNG."""
    return [int.from_bytes(png[place : place + 4], "big") for place in (16, 20)]


def test_series_of_one_kind_have_different_colours():
    rows = [{"series": series, "method": f"depth {series}"} for series in ("magnitude", "magnitude+", "taylor", "ppl")]
    assert len({look.colour for look in series_looks(rows).values()}) == 4
    methods = ["original", "flap", "wanda-sp", "llm-pruner", "depth ppl"]
    kept = series_looks([{"series": method, "method": method} for method in methods])
    assert {method: look.colour for method, look in kept.items()} == {
        method: look.colour for method, look in styles(methods).items()
    }


def test_an_interrupted_recipe_goes_on_to_equal_results(small, finished, tmp_path, monkeypatch):
    measure, calls = module.perplexity_of, []

    def interrupted(*words):
        calls.append(words)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return measure(*words)

    monkeypatch.setattr(module, "perplexity_of", interrupted)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        recipe(small, "shape:tiny", out=out)
    assert not out.exists()
    with pytest.raises(InputError, match="--resume continues it"):
        recipe(small, "shape:tiny", out=out)
    resumed = recipe(small, "shape:tiny", out=out, resume=True).results
    # Five rows, of which three were finished; the fourth, which is retrained, was begun twice.
    assert len(calls) == 6
    assert measured(resumed) == measured(finished[0])
    assert not out.with_name("out.unfinished").exists()


@pytest.mark.slow
def test_a_store_serves_other_recipes_of_the_same_model(small, finished, tmp_path, monkeypatch):
    store = tmp_path / "store"
    recipe(small, "shape:tiny", store=store)
    other = tmp_path / "other.toml"
    other.write_text(SMALL.replace('title = "Small"', 'title = "Other"'))

    def never(*_: object, **__: object):
        raise AssertionError("made a second time")

    monkeypatch.setattr(module, "perplexity_of", never)
    for name in ("retrained", "scoring"):
        monkeypatch.setattr(models, name, never)
    assert measured(recipe(other, "shape:tiny", store=store).results) == measured(finished[0])
    with pytest.raises(AssertionError, match="second time"):
        recipe(other, "shape:tiny,blocks=5", store=store)


@pytest.mark.slow
def test_iterative_rows_are_rounds_of_one_pruning(tmp_path):
    rows = recipe(iterative(tmp_path), "shape:tiny").results["rows"]
    assert [row["values"].get("blocks") for row in rows] == [4, 3, 2]
    assert rows[2]["removed"]["units"][:1] == rows[1]["removed"]["units"]
    assert rows[1]["made"] == {"steps": 1, "trainings": 1}


def test_a_stop_between_the_last_round_and_its_piece_of_the_store_loses_nothing(tmp_path, monkeypatch):
    store = tmp_path / "store"
    train, write, calls = iterating.retrained, store_module.write_json, []

    def counted(*words, **named):
        calls.append(1)
        return train(*words, **named)

    def stopped(path, record):
        if record["kind"] == "iterate":
            raise KeyboardInterrupt
        write(path, record)

    monkeypatch.setattr(iterating, "retrained", counted)
    monkeypatch.setattr(store_module, "write_json", stopped)
    with pytest.raises(KeyboardInterrupt):
        recipe(iterative(tmp_path), "shape:tiny", store=store)
    monkeypatch.setattr(store_module, "write_json", write)
    rows = recipe(iterative(tmp_path), "shape:tiny", store=store).results["rows"]
    assert [row["values"].get("blocks") for row in rows] == [4, 3, 2]
    assert len(calls) == 2
    assert list((store / "unfinished").iterdir()) == []


@pytest.mark.parametrize("name", sorted(folder.name for folder in COMMITTED.iterdir() if folder.is_dir()))
def test_committed_results_give_their_tables_again(name):
    results = json.loads((COMMITTED / name / "results.json").read_text("utf-8"))
    assert report._markdown(results) == (COMMITTED / name / "table.md").read_text("utf-8")


def test_a_recipe_without_anything_of_the_paper_has_no_heading_for_it(tmp_path):
    committed = COMMITTED / "repair-and-retrain" / "results.json"
    RecipeResult(json.loads(committed.read_text("utf-8"))).save(tmp_path / "again")
    table = (tmp_path / "again" / "table.md").read_text("utf-8")
    assert "Against the paper" not in table
    assert table.count("\n| ") == 15  # header, rule and 13 models
