"""The paper's tables and figures from files of the GPU check: what agrees, what does not, why, and what is missing."""

from __future__ import annotations

import csv
import json

import pytest

from pyprune.cli import main
from pyprune.errors import InputError
from pyprune.files import write_json
from pyprune.study.paper import facts
from pyprune.study.paper.evidence import collect
from pyprune.study.paper.figures import equal_bytes, figure_1, figure_2, figure_6, saw_tooth
from pyprune.study.paper.tables import alignment_table, memory_table, speed_table
from pyprune.study.paper.verdicts import agreement, findings, relative_speed, verdict_text, why
from pyprune.study.redraw import redraw
from tests.study.gpu_files import (
    as_the_paper,
    by_bytes,
    check,
    generations,
    launch_bound,
    layer_peer,
    part,
    table1,
    width_sweep,
)

PNG = b"\x89PNG\r\n\x1a\n"
SPEEDS, EQUAL, MEASURED, ALIGNMENT = (
    "Speed-ups over the original, and the paper's", "Width against depth at equal bytes", "What was measured",
    "Which alignment matters",
)  # fmt: skip


def evidence(*parts, dry_run=False):
    [found] = collect(["gpu_check.json"], [check(*parts, dry_run=dry_run)])
    return found


@pytest.fixture(scope="module")
def full():
    return [
        check(
            part("table1", table1(by_bytes, padded=by_bytes)),
            part("generations", generations(launch_bound, by_bytes)),
            part("layer_peer", layer_peer()),
        ),
        check(part("sweep", width_sweep())),
    ]


@pytest.fixture(scope="module")
def pages(full, tmp_path_factory):
    """The directory of `full`'s pages."""
    folder = tmp_path_factory.mktemp("pages")
    for place, data in enumerate(full):
        write_json(folder / f"{place}.json", data)
    written = redraw([folder / "0.json", folder / "1.json"], folder / "paper")
    assert {path.name for path in written} == {path.name for path in (folder / "paper").iterdir()}
    return folder / "paper"


FIGURES = {"figure1.png": figure_1, "figure2.png": figure_2, "figure6.png": figure_6, "bytes.png": equal_bytes}


def test_the_papers_numbers_are_those_of_its_tables():
    assert facts.speed("llama-7b", "20%", "llm-pruner") == facts.Speed(
        "llama-7b", "20%", "llm-pruner", "H100", 3.0, 43.2, "Table 2"
    )
    assert facts.speed("vicuna-13b", None, "original", "RTX3090").latency_s is None
    assert facts.speedup("vicuna-13b", "21%", "depth", "RTX3090") is None  # its original ran out of memory
    assert facts.speedup("llama-7b", "35%", "depth") == pytest.approx(80.1 / 53.7)
    assert (len(facts.shapes()), len(facts.speeds()), len(facts.memories())) == (26, 52, 48)
    # Tables 2 and 4: throughput is 128 tokens over the latency, to rounding and to what runs on an RTX 3090 differ.
    for one in facts.speeds():
        if one.latency_s is not None:
            assert 128 / one.latency_s == pytest.approx(one.tokens_per_s, rel=0.04)


# --- verdicts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "paper", "verdict"),
    [
        (0.75, 0.80, 0.78, "agrees"),
        (1.20, 1.25, 0.78, "disagrees"),
        (0.99, 1.01, 0.78, "disagrees"),  # as fast is not slower
        (0.99, 1.01, 1.02, "agrees"),
        (0.90, 1.10, 0.78, "undecided"),
        (None, None, 0.78, "undecided"),
    ],
)
def test_a_verdict_needs_an_interval_on_one_side(low, high, paper, verdict):
    assert agreement({"median": 1.0, "low": low, "high": high}, paper) == verdict


def test_an_undecided_verdict_gives_its_own_reason():
    assert verdict_text({"median": 1.0, "low": 0.90, "high": 1.10}, 0.78) == "undecided, the interval allows both"
    assert verdict_text({"median": 1.0, "low": None, "high": None}, 0.78) == "undecided, too few runs"
    assert verdict_text({"median": 0.78, "low": 0.75, "high": 0.80}, 0.78) == "as in the paper"


def test_rows_that_follow_their_bytes_disagree_with_the_paper_on_width_and_agree_on_depth():
    found = evidence(part("table1", table1(by_bytes)))
    [tally, *lines] = findings(found)[SPEEDS]
    assert "12 speed-ups" in tally
    assert "3 agree, 9 disagree, 0 undecided" in tally
    assert all("It follows the bytes of a step" in line for line in lines)
    assert sum("as in the paper: Depth" in line for line in lines) == 3
    assert all("against depth, width is as fast in 9 (" in line for line in findings(found)[EQUAL])
    assert "In the paper, at nearly equal bytes: 0.51 to 0.65." in findings(found)[EQUAL][0]


def test_rows_as_the_papers_agree_and_width_is_slower_at_equal_bytes():
    found = evidence(part("table1", table1(as_the_paper)))
    assert "12 agree, 0 disagree, 0 undecided" in findings(found)[SPEEDS][0]
    assert all("against depth, width is slower in 9 (" in line for line in findings(found)[EQUAL])
    width, depth = (found.timing(m, "20%", "pyprune", "step") for m in ("wanda-sp", "depth"))
    speed = relative_speed(found, width, depth)
    assert speed["median"] == pytest.approx(41.7 / 66.0, rel=0.03)
    assert speed["low"] < speed["median"] < speed["high"]


def test_one_slow_median_decides_nothing_at_equal_bytes():
    result = table1(by_bytes, ("20%",), (1,))
    noisy = next(line for line in result["timings"] if line["row"] == "flap 20%")
    noisy["step_seconds"] = [s * (1.1 if turn < 5 else 0.9) for turn, s in enumerate(noisy["step_seconds"])]
    [line] = findings(evidence(part("table1", result)))[EQUAL]
    assert "against depth, width is as fast in 2, undecided in 1 (" in line
    assert "FLAP 0.92 (0.91 to 1.11)" in line


def test_width_and_depth_pair_within_a_round_whatever_the_original_takes_in_it():
    result = table1(by_bytes, ("20%",), (1,))
    original = result["timings"][0]["step_seconds"]
    assert all(line["original_step_seconds"] is original for line in result["timings"])
    original[:] = [seconds * (1 + turn) for turn, seconds in enumerate(original)]
    [line] = findings(evidence(part("table1", result)))[EQUAL]
    assert "against depth, width is as fast in 3 (" in line


def test_width_and_depth_without_an_interval_are_undecided():
    [few] = findings(evidence(part("table1", table1(as_the_paper, ("20%",), (1,), runs=3))))[EQUAL]
    assert "width is undecided in 3, of which 3 without an interval (" in few
    depth, width = table1(as_the_paper, ("20%",), (1,)), table1(as_the_paper, ("20%",), (1,))
    depth["timings"] = [line for line in depth["timings"] if line["row"] in ("original", "depth 20%")]
    width["timings"] = [line for line in width["timings"] if line["row"] != "depth 20%"]
    [found] = collect(["a.json", "b.json"], [check(part("table1", depth)), check(part("table1", width))])
    [apart] = findings(found)[EQUAL]
    assert "width is undecided in 3, of which 3 without an interval (" in apart


def test_alignment_is_the_reason_where_padded_rows_are_faster():
    found = evidence(part("table1", table1(as_the_paper, padded=by_bytes)))
    assert why(found, found.timing("flap", "20%", "pyprune", "step"))[0] == "alignment"
    assert why(found, found.timing("llm-pruner", "27%", "pyprune", "step"))[0] == "perhaps alignment"
    # 8256 is a multiple of 64, so alignment is none of its reasons.
    assert why(found, found.timing("llm-pruner", "20%", "pyprune", "step"))[0] == "none"


def test_launches_are_the_reason_where_time_goes_with_blocks_and_far_above_the_bytes():
    found = evidence(part("generations", generations(launch_bound, by_bytes)))
    for method in facts.METHODS:
        assert why(found, found.timing(method, "20%", "hf", "generation"))[0] == "launches"
        assert why(found, found.timing(method, "20%", "pyprune", "generation"))[0] == "bytes"
    without = generations(launch_bound, by_bytes) | {"bandwidth": None}
    found = evidence(part("generations", without))
    assert why(found, found.timing("wanda-sp", "20%", "hf", "generation"))[0] == "perhaps alignment"


def test_few_runs_are_undecided_and_said_to_be():
    found = evidence(part("table1", table1(by_bytes, runs=3)))
    assert "0 agree, 0 disagree, 12 undecided" in findings(found)[SPEEDS][0]
    assert any("fewer than 6 runs" in line for line in findings(found)[MEASURED])
    assert all("undecided, too few runs: " in line for line in findings(found)[SPEEDS][1:])


def test_missing_rows_and_parts_that_were_stopped_are_named():
    result = table1(by_bytes, ratios=("20%",), batches=(1,))
    result["timings"] = [line for line in result["timings"] if line["row"] != "flap 20%"]
    found = evidence(part("table1", result, "stopped", "at its limit of 60 s"))
    told = " ".join(findings(found)[MEASURED])
    assert "pyprune, replayed steps: not measured: FLAP 20%, Depth 27%" in told
    assert "Hugging Face eager, generations: no row was measured." in told
    assert "table1 stopped (at its limit of 60 s)" in told
    header, rows = speed_table(found)
    flap = next(row for row in rows if row[:2] == ["20%", "FLAP"])
    assert flap[header.index("paper H100: latency s")] == "3.2"
    assert flap[header.index("pyprune: step ms")] == ""


def test_a_row_whose_original_failed_has_no_speed_up():
    result = table1(by_bytes, ratios=("20%",))
    for line in result["timings"]:
        line.pop("original_step_seconds")
    found = evidence(part("table1", result))
    assert SPEEDS not in findings(found)
    header, rows = speed_table(found)
    wanda = next(row for row in rows if row[1] == "Wanda-sp")
    assert wanda[header.index("pyprune: step ms")] != ""
    assert wanda[header.index("pyprune: step speed")] == ""


def test_the_alignment_of_each_side_is_told(full):
    [found] = collect(["a", "b"], full)
    [cublas, ours] = findings(found)[ALIGNMENT]
    assert cublas.startswith("cuBLAS: matters for down at M = 1: multiples of 8 (others up to 2.0")
    assert ours.startswith("pyprune, packed: none matters for ")
    _, rows = alignment_table(found)
    assert {(row[2], row[3]) for row in rows} == {("cuBLAS", "8"), ("pyprune, packed", "none")}
    unfinished = evidence(part("sweep", width_sweep(finished=False)))
    assert "ended after" in findings(unfinished)[ALIGNMENT][-1]


# --- tables and figures -------------------------------------------------------------------------------------------


def test_the_paper_stands_beside_ours_in_tables_2_and_9(full):
    [found] = collect(["a", "b"], full)
    header, rows = speed_table(found)
    original, wanda, padded = rows[:3]
    assert wanda[:2] == ["20%", "Wanda-sp"]
    assert padded[1] == "Wanda-sp, padded strides"
    cells = dict(zip(header, wanda, strict=True))
    assert (cells["paper H100: latency s"], cells["paper H100: tokens/s"], cells["paper H100: speed"]) == (
        "3.1", "41.7", "0.78x",
    )  # fmt: skip
    assert cells["pyprune: step speed"].startswith("1.24x (")
    assert cells["HF here: speed"].startswith("1.00x (")
    assert float(cells["HF here: latency s"]) == pytest.approx(128 * 32 * 0.7e-3, rel=0.01)
    assert cells["steps against paper"] == "disagrees"
    assert dict(zip(header, original, strict=True))["paper H100: latency s"] == "2.4"
    header, rows = memory_table(found)
    assert rows[0] == ["", "Original", "128", "1", "12.8", "12.9", "12.5", "1.01"]
    assert len(rows) == 24


def test_an_rtx_3090_is_compared_with_the_papers_one():
    found = evidence(part("table1", table1(by_bytes, device="NVIDIA GeForce RTX 3090")))
    header, rows = speed_table(found)
    assert rows[1][header.index("paper RTX3090: latency s")] == "7.6"


def test_out_of_memory_is_a_cell_and_no_number():
    result = generations(by_bytes, by_bytes)
    result["memory"][0] = {**result["memory"][0], "peak_bytes": None, "error": "OutOfMemoryError: CUDA out of memory"}
    found = evidence(part("generations", result))
    _, rows = memory_table(found)
    assert rows[0][5] == "OOM"


@pytest.mark.slow
def test_figures_are_drawn_from_whole_and_from_partial_evidence(pages):
    partial = evidence(part("table1", table1(by_bytes, ratios=("20%",), batches=(1,))))
    sweep_only = evidence(part("sweep", width_sweep(finished=False)))
    whole = [(pages / name).read_bytes() for name in FIGURES]
    for images in (whole, *([draw(found) for draw in FIGURES.values()] for found in (partial, sweep_only))):
        assert all(image.startswith(PNG) for image in images)
        assert len(set(images)) == 4
    assert (pages / "saw-tooth.png").read_bytes().startswith(PNG)


@pytest.mark.slow
def test_a_directory_holds_page_tables_and_figures(full, pages):
    assert {path.name for path in pages.iterdir()} == {
        "index.html", "report.md", "table2.csv", "table9.csv", "alignment.csv", "figure1.png", "figure2.png",
        "figure6.png", "bytes.png", "saw-tooth.png",
    }  # fmt: skip
    page = (pages / "index.html").read_text("utf-8")
    assert page.count("data:image/png;base64,") == 5
    assert "prefers-color-scheme: dark" in page
    assert "ry run" not in page
    with (pages / "table2.csv").open(encoding="utf-8", newline="") as source:
        assert len(list(csv.reader(source))) == len(speed_table(collect(["a", "b"], full)[0])[1]) + 1


@pytest.mark.slow
def test_several_models_have_files_of_their_own(full, tmp_path):
    large = table1(by_bytes) | {"model": "vicuna-13b", "rows": [], "timings": []}
    write_json(tmp_path / "a.json", full[0])
    write_json(tmp_path / "b.json", check(part("table1-13b", large)))
    names = {path.name for path in redraw([tmp_path / "a.json", tmp_path / "b.json"], tmp_path / "paper")}
    assert {"llama-7b-table2.csv", "vicuna-13b-table4.csv", "vicuna-13b-figure6.png"} <= names


# --- a dry run is no measurement ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_dry_run_shows_no_number_of_its_own_and_says_so(tmp_path, full, pages):
    parts = [*full[0]["parts"], *full[1]["parts"]]
    write_json(tmp_path / "dry.json", check(*parts, dry_run=True))
    redraw([tmp_path / "dry.json"], tmp_path / "paper")
    found = evidence(*parts, dry_run=True)
    assert list(findings(found)) == ["What this is"]
    header, rows = speed_table(found)
    ours = [place for place, name in enumerate(header[2:], 2) if not name.startswith("paper")]
    assert {row[place] for row in rows for place in ours} == {"dry run", ""}
    header, rows = memory_table(found)
    assert {row[place] for row in rows for place in (5, 6, 7)} == {"dry run", ""}
    assert alignment_table(found)[1] == []
    for name in ("index.html", "report.md"):
        text = (tmp_path / "paper" / name).read_text("utf-8")
        assert "No number or line of ours is a measurement" in text
        assert "agree" not in text.split("How to read it")[0].replace("agrees with the paper, where not", "")
    for name in (*FIGURES, "saw-tooth.png"):
        assert (tmp_path / "paper" / name).read_bytes() != (pages / name).read_bytes()


@pytest.mark.slow
def test_the_figures_of_a_dry_run_have_no_numbers_on_their_axes(monkeypatch, full):
    from pyprune.study.paper import figures

    drawn = []
    monkeypatch.setattr(figures, "png", lambda figure: drawn.append(figure) or PNG)
    found = evidence(*full[0]["parts"], dry_run=True)
    for draw in FIGURES.values():
        draw(found)
    saw_tooth({**full[1]["parts"][0]["result"], "dry_run": True})
    assert len(drawn) == 5
    for figure in drawn:
        figure.canvas.draw()
        for panel in figure.axes:
            assert any("DRY RUN" in text.get_text() for text in panel.texts)
            labels = [*panel.get_xticklabels(), *panel.get_yticklabels()]
            assert not any(label.get_visible() and label.get_text() for label in labels)


# --- what is refused ----------------------------------------------------------------------------------------------


def test_files_that_do_not_belong_are_refused_by_name(full, tmp_path, results):
    measured = full[0]
    write_json(tmp_path / "a.json", measured)
    write_json(tmp_path / "dry.json", check(*measured["parts"], dry_run=True))
    write_json(tmp_path / "other.json", check(part("table1", table1(by_bytes, device="NVIDIA H200"))))
    write_json(tmp_path / "new.json", {**measured, "format": "pyprune-gpu-check/9"})
    write_json(tmp_path / "plain.json", {"parts": []})
    torn = json.loads(json.dumps(measured))
    del torn["parts"][0]["result"]["rows"]
    write_json(tmp_path / "torn.json", torn)
    write_json(tmp_path / "empty.json", check(part("environment", {"machine": {}})))
    write_json(tmp_path / "tiny.json", results)
    refusals = [
        (["a.json", "dry.json"], "a dry run beside measured ones"),
        (["a.json", "other.json"], "several devices"),
        (["a.json", "new.json"], "format 'pyprune-gpu-check/9'"),
        (["a.json", "plain.json"], "names no format"),
        (["torn.json"], "torn.json: incomplete results of pyprune-gpu-check/1"),
        (["empty.json"], "no file holds rows of the paper's models"),
    ]
    for names, told in refusals:
        with pytest.raises(InputError, match=told):
            redraw([tmp_path / name for name in names], tmp_path / "out")
        assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="no file holds rows"):
        redraw([tmp_path / "tiny.json"], tmp_path / "out", paper=True)
    with pytest.raises(InputError, match="a directory is expected"):
        redraw([tmp_path / "a.json"], tmp_path / "out.png")
    with pytest.raises(InputError, match="--count 3"):
        redraw([tmp_path / "a.json"], tmp_path / "out", count=3)


@pytest.mark.slow
def test_a_comparison_of_the_papers_model_gives_its_rows(results, tmp_path):
    data = json.loads(json.dumps(results))
    data["model"]["name"] = "shape:llama-7b"
    data["protocol"]["output_tokens"] = [128]
    for line in data["timings"]:
        line["output_tokens"] = 128
    write_json(tmp_path / "results.json", data)
    names = {path.name for path in redraw([tmp_path / "results.json"], tmp_path / "paper", paper=True)}
    assert "table2.csv" in names
    [found] = collect(["results.json"], [data])
    assert found.timing("depth", "20%", "hf", "generation").new_tokens == 128


@pytest.mark.parametrize("other", [{"cpu": "Other CPU"}, {"threads": 2}])
def test_comparisons_on_two_cpus_are_not_one_device(results, other):
    results["model"]["name"] = "shape:llama-7b"
    [alone] = collect(["a.json"], [results])
    assert alone.device == "Test CPU, 1 thread"
    second = {**results, "machine": {**results["machine"], **other}}
    with pytest.raises(InputError, match="results of several devices"):
        collect(["a.json", "b.json"], [results, second])


def test_a_comparison_on_the_second_gpu_names_that_one(results):
    results["model"]["name"] = "shape:llama-7b"
    results["settings"]["device"] = "cuda:1"
    results["machine"]["gpus"] = [{"name": "NVIDIA H100"}, {"name": "NVIDIA H200"}]
    [found] = collect(["a.json"], [results])
    assert found.device == "NVIDIA H200"


def test_of_two_timings_of_a_row_the_one_with_more_runs_counts_and_then_the_later():
    few, first, later = (check(part("table1", table1(by_bytes, ("20%",), (1,), runs=runs))) for runs in (3, 9, 9))
    later["parts"][0]["result"]["timings"][1]["step_seconds"] = [1.0] * 9
    for data, runs in (([few, first], 9), ([first, few], 9)):
        [found] = collect(["a", "b"], data)
        assert len(found.timing("depth", "20%", "pyprune", "step").seconds) == runs
    [found] = collect(["a", "b"], [first, later])
    assert found.timing("depth", "20%", "pyprune", "step").seconds == (1.0,) * 9


def test_a_part_that_is_not_the_reports_is_not_missed():
    found = evidence(part("table1", table1(by_bytes)), part("install", {}, "skipped", "a dry run installs nothing"))
    assert found.incomplete == []


def test_the_command_writes_the_pages(full, tmp_path, capsys):
    write_json(tmp_path / "a.json", full[0])
    assert main(["report", str(tmp_path / "a.json"), "--out", str(tmp_path / "paper"), "--json"]) == 0
    assert str(tmp_path / "paper" / "index.html") in json.loads(capsys.readouterr().out)["written"]
    assert main(["report", str(tmp_path / "a.json"), "--out", str(tmp_path / "paper")]) == 2
