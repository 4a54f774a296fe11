"""The Pareto front of comparisons, and the model to take under a limit."""

from __future__ import annotations

import copy
import json
import random

import pytest

from pyprune.errors import InputError
from pyprune.files import write_json
from pyprune.study.frontier import frontier, pareto
from pyprune.study.frontier_report import save
from tests.cli.command_line import run


@pytest.fixture
def file(results, tmp_path):
    write_json(tmp_path / "results.json", results)
    return tmp_path / "results.json"


@pytest.fixture
def second(results, tmp_path):
    """Another comparison of the same model, at 35 %."""
    other = copy.deepcopy(results)
    for row in other["rows"][1:]:
        row.update(name=row["name"].replace("20%", "35%"), ratio="35%", ppl=2 * row["ppl"])
    for timing in other["timings"]:
        faster = 1.0 if timing["row"] == "original" else 0.5
        timing.update(row=timing["row"].replace("20%", "35%"), seconds=[faster * s for s in timing["seconds"]])
    folder = tmp_path / "compare-35"
    folder.mkdir()
    write_json(folder / "results.json", other)
    return folder


def test_a_point_is_on_the_front_when_no_other_dominates_it():
    draw = random.Random(3)
    pairs = [(draw.randrange(6), draw.randrange(6)) for _ in range(40)]
    for more in (False, True):
        for (cost, quality), on in zip(pairs, pareto(pairs, more), strict=True):
            better = [
                (a, b)
                for a, b in pairs
                if a <= cost and (b >= quality if more else b <= quality) and (a < cost or b != quality)
            ]
            assert on == (not better)


def test_the_best_within_a_latency_is_taken_and_named(file):
    # pyprune, batch 1: original 500 ms and PPL 10, depth 400 ms and 14, padded 500 ms and 120.
    front = frontier([file], latency_ms=450)
    assert (front.engine, front.batch, front.output_tokens, front.quality) == ("pyprune", 1, 16, "ppl")
    assert front.choice.name == "depth 20%"
    assert "Within 450 ms for a batch of 1 and 16 new tokens under pyprune, take depth 20% (PPL 14.00, 400 ms" in (
        front.sentence
    )
    assert {point.name for point in front.points if point.fast} == {"original", "depth 20%"}
    assert frontier([file], latency_ms=500).choice.name == "original"
    assert "A quarter of its runs took 525 ms or more" in frontier([file], latency_ms=500).sentence


def test_nothing_within_a_limit_is_said_with_the_nearest(file):
    front = frontier([file], latency_ms=1)
    assert front.choice is None
    assert front.sentence.startswith("Nothing measured stays within 1 ms")
    assert "the nearest is depth 20% (PPL 14.00" in front.sentence


def test_a_size_counts_the_weights_in_the_timed_dtype(file):
    # 1000 parameters in bfloat16 are 0.002 MB.
    assert frontier([file], size_mb=0.0016).choice.name == "depth 20%"
    assert frontier([file], size_mb=0.002).choice.name == "original"
    assert "take original (PPL 10.00, 500 ms, 0.002 MB)" in frontier([file], size_mb=0.002).sentence


def test_several_comparisons_share_one_front_and_the_original_stands_once(file, second):
    front = frontier([file, second], batch=8)
    names = [point.name for point in front.points]
    assert names.count("original") == 1
    assert any(name.startswith("depth 35% [compare-35]") for name in names)
    assert len(names) == 7
    assert frontier([file, second], batch=8, latency_ms=900).choice.name == "depth 35% [compare-35]"


def test_times_of_a_slower_session_are_scaled_to_the_first_files_original(file, second, tmp_path):
    beside = {point.name: point for point in frontier([file, second]).points}
    slow = json.loads((second / "results.json").read_text("utf-8"))
    for timing in slow["timings"]:
        timing["seconds"] = [2 * seconds for seconds in timing["seconds"]]
    write_json(second / "results.json", slow)
    front = frontier([file, second], latency_ms=450)
    for point in front.points:
        assert point.latency_ms == pytest.approx(beside[point.name].latency_ms)
        assert point.latency_q3_ms == pytest.approx(beside[point.name].latency_q3_ms)
        assert point.tokens_per_s == pytest.approx(beside[point.name].tokens_per_s)
        assert point.scale == (0.5 if point.name.endswith("[compare-35]") else 1.0)
    told = f"the original takes as long as in {tmp_path.name}: those of compare-35 by 0.500."
    assert front.sentence.endswith(told)
    save(front, tmp_path / "front")
    assert told in (tmp_path / "front" / "index.html").read_text("utf-8")
    assert "scaled" not in frontier([second]).sentence


def test_times_are_as_measured_where_a_file_has_none_of_the_original(file, second):
    other = json.loads((second / "results.json").read_text("utf-8"))
    other["timings"] = [timing for timing in other["timings"] if timing["row"] != "original"]
    write_json(second / "results.json", other)
    front = frontier([file, second])
    assert {point.scale for point in front.points} == {1.0}
    assert front.sentence.endswith("not scaled to one original: compare-35 did not time it.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["model"].update(name="other"), "has another model than"),
        (lambda r: r["settings"].update(dtype="float32"), "another dtype than"),
        (lambda r: r["evaluation"].update(sha256="cd"), "another text or task than"),
        (lambda r: r["machine"].update(cpu="other"), "another machine, version or kernels than"),
        (lambda r: r.update(format="other/1"), "results of format 'other/1'"),
        (lambda r: r.pop("rows"), "incomplete results"),
    ],
)
def test_what_does_not_compare_is_refused(file, second, change, message):
    other = json.loads((second / "results.json").read_text("utf-8"))
    change(other)
    write_json(second / "results.json", other)
    with pytest.raises(InputError, match=message):
        frontier([file, second])


def test_comparisons_under_other_kernels_do_not_compare_and_older_ones_name_none(file, second):
    first, other = (json.loads(path.read_text("utf-8")) for path in (file, second / "results.json"))
    first["machine"]["kernels"] = {"instruction_set": "avx2"}
    write_json(file, first)
    assert frontier([file, second]).points
    other["machine"]["kernels"] = {"instruction_set": "portable"}
    write_json(second / "results.json", other)
    with pytest.raises(InputError, match="another machine, version or kernels than"):
        frontier([file, second])


def test_accuracy_is_better_the_higher_it_is(results, tmp_path):
    for row in results["rows"]:
        row["accuracy"] = {"boolq": {"acc": {10.0: 0.7, 14.0: 0.65, 120.0: 0.5}[row["ppl"]], "acc_stderr": 0.01}}
    settings = {"tasks": ["boolq"], "limit": None, "data": None}
    write_json(tmp_path / "a.json", {**results, "evaluations": {"perplexity": {}, "accuracy": settings}})
    front = frontier([tmp_path / "a.json"], quality="accuracy", latency_ms=450)
    assert front.choice.name == "depth 20%"
    assert "accuracy 65.0 %" in front.sentence
    save(front, tmp_path / "front")


def test_a_row_without_times_or_finite_quality_is_no_point(results, tmp_path):
    results["rows"][2]["ppl"] = None
    results["timings"] = [timing for timing in results["timings"] if timing["row"] != "wanda-sp 20%, padded"]
    write_json(tmp_path / "a.json", results)
    assert [point.name for point in frontier([tmp_path / "a.json"]).points] == ["depth 20%", "original"]


def test_the_command_writes_json_csv_figure_and_page(capsys, file, tmp_path):
    code, out, err = run(capsys, "frontier", file, "--latency", "450", "--out", tmp_path / "front")
    assert (code, err) == (0, "")
    assert "take depth 20%" in " ".join(out.split())
    assert "<- take this" in out
    names = sorted(path.name for path in (tmp_path / "front").iterdir())
    assert names == ["frontier.csv", "frontier.json", "frontier.png", "index.html"]
    data = json.loads((tmp_path / "front" / "frontier.json").read_text("utf-8"))
    assert (data["format"], data["choice"]["name"]) == ("pyprune-frontier/1", "depth 20%")
    printed = json.loads(run(capsys, "frontier", file, "--json")[1])
    assert printed["choice"] is None
    assert len(printed["points"]) == 4


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["no.json"], "no.json: no results; a directory that compare --out wrote, or its results.json, is expected"),
        (["results.json", "--latency", "-1"], "'-1'"),
        (["results.json", "--latency", "0"], "'0'"),
        (["results.json", "--latency", "5", "--size", "5"], "not allowed with"),
        (["results.json", "--batch", "4"], "batch 4: not timed in every file; all files have 1, 8"),
        (["results.json", "--new-tokens", "4"], "output tokens 4: not timed"),
        (["results.json", "--quality", "accuracy"], "results.json: has no accuracy"),
        (["results.json", "results.json"], "none of them twice"),
        (["results.json", "--out", "results.json"], "results.json: is a file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words, named, capsys, file, monkeypatch):
    monkeypatch.chdir(file.parent)
    code, out, err = run(capsys, "frontier", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert named in err
