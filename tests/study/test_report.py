"""Everything drawn from the results alone: table, CSV, JSON, figures, page, terminal, sentences."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import struct
from pathlib import Path

import pytest

from pyprune.errors import InputError
from pyprune.study.columns import Table, shown
from pyprune.study.findings import findings, speed_cells
from pyprune.study.page import page
from pyprune.study.plots import latency_drawings, quality_drawings
from pyprune.study.report import render, save, terminal
from pyprune.study.results_directory import ReportError
from pyprune.study.table import table, timing_columns
from pyprune.study.verdict import verdict

PNG = b"\x89PNG\r\n\x1a\n"


_RENDERED: list[Path] = []


@pytest.fixture
def report(results, tmp_path_factory) -> Path:
    """The directory of the results as they are, drawn once for all tests that only read it."""
    if not _RENDERED:
        render(results, folder := tmp_path_factory.mktemp("rendered") / "report")
        _RENDERED.append(folder)
    return _RENDERED[0]


def line_of(results, row, engine="hf", batch=1):
    return next(line for line in table(results) if (line["row"], line["engine"], line["batch"]) == (row, engine, batch))


def test_the_table_pairs_speedups_by_round_and_predicts_them_by_bytes(results):
    # Wanda-sp: 1/1.25, 1.1/1.1, 0.9/1.0 paired by round.
    line = line_of(results, "wanda-sp 20%")
    assert line["speedup"] == pytest.approx(0.9)
    assert line["speedup_q1"] == pytest.approx(0.85)
    assert line["speedup_q3"] == pytest.approx(0.95)
    assert line["speedup_by_bytes"] == pytest.approx(2000 / 1602)
    assert line["latency_s"] == 1.1
    assert line["latency_mean_s"] == pytest.approx((1.25 + 1.1 + 1.0) / 3)


def test_throughput_is_all_new_tokens_of_the_batch_over_its_latency(results):
    assert line_of(results, "original", batch=8)["tokens_per_s"] == pytest.approx(8 * 16 / 4.0)


def test_pyprune_is_compared_with_hf_on_the_same_row(results):
    assert line_of(results, "depth 20%", "pyprune")["pyprune_vs_hf"] == pytest.approx(2.0)
    assert line_of(results, "depth 20%", "hf")["pyprune_vs_hf"] is None


def test_the_directory_holds_all_raw_samples_and_the_csv_has_one_line_a_timing(results, report):
    assert json.loads((report / "results.json").read_text("utf-8")) == results
    with (report / "table.csv").open(encoding="utf-8", newline="") as source:
        rows = list(csv.DictReader(source))
    assert len(rows) == len(results["timings"]) == 16
    assert list(rows[0]) == [column.name for column in shown(timing_columns(results), Table.CSV)]
    assert float(rows[2]["speedup"]) == pytest.approx(0.9)
    assert rows[0]["ratio"] == ""


def test_the_figures_are_png_files_of_readable_size(report):
    for name in ("figure1.png", "figure2.png"):
        data = (report / name).read_bytes()
        assert data.startswith(PNG)
        width, height = struct.unpack(">II", data[16:24])
        assert width >= 800
        assert height >= 400


@pytest.mark.slow
def test_a_pruned_row_without_finite_perplexity_is_said_and_left_out_of_the_figure(results, tmp_path):
    for row in results["rows"]:
        row["ppl"] = None
    render(results, tmp_path / "report")
    assert "not finite" in (tmp_path / "report" / "index.html").read_text("utf-8")
    assert "The perplexity of depth 20% is not finite." in findings(results)


@pytest.mark.slow
def test_figures_and_page_do_with_several_ratios_and_output_lengths(results, tmp_path):
    for row in results["rows"][1:4]:
        results["rows"].append({**row, "name": row["name"].replace("20%", "35%"), "ratio": "35%"})
    for timing in list(results["timings"]):
        if timing["row"] != "original":
            results["timings"].append({**timing, "row": timing["row"].replace("20%", "35%")})
    results["timings"] += [{**timing, "output_tokens": 32} for timing in list(results["timings"])]
    render(results, tmp_path / "report")
    text = (tmp_path / "report" / "index.html").read_text("utf-8")
    assert "depth 35%" in text
    height = struct.unpack(">I", (tmp_path / "report" / "figure1.png").read_bytes()[20:24])[0]
    assert height > 900  # one line of panels for each ratio


def test_the_page_is_self_contained(report):
    text = (report / "index.html").read_text("utf-8")
    targets = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'>\s]*)""", text)
    assert all(value.startswith(("data:", "#")) for value in targets)
    assert {value[1:] for value in targets if value.startswith("#")} <= set(re.findall(r' id="([^"]+)"', text))
    assert "http" not in text
    assert "@import" not in text
    assert text.count("<script>") == 1
    assert re.findall(r"url\((?!#)", text) == []


def saved_from(text: str, name: str) -> bytes:
    """The file of this name that a page lets its reader save."""
    data = re.search(rf'<a download="{name}" href="data:[a-z/]+;base64,([^"]+)"', text)
    assert data is not None
    return base64.b64decode(data[1], validate=True)


@pytest.mark.slow
def test_raw_samples_can_be_saved_from_the_page_itself(results, report):
    text = (report / "index.html").read_text("utf-8")
    for name in ("results.json", "table.csv"):
        assert saved_from(text, name) == (report / name).read_bytes()
    rows = list(csv.DictReader(io.StringIO(saved_from(text, "samples.csv").decode())))
    assert len(rows) == sum(len(timing["seconds"]) for timing in results["timings"]) == 48
    seconds = [float(r["seconds"]) for r in rows if (r["row"], r["engine"], r["batch"]) == ("depth 20%", "hf", "1")]
    assert seconds == [0.8, 0.88, 0.72]


@pytest.mark.slow
def test_the_verdict_and_the_plot_come_before_all_else(report):
    text = (report / "index.html").read_text("utf-8")
    verdict_at, plot_at, first_heading = text.index('class="verdict"'), text.index("<svg"), text.index("<h2>")
    assert verdict_at < plot_at < first_heading
    assert "<li>" not in text
    # Two panels of quality and throughput, and one of latency for each engine.
    assert text.count('<svg role="img"') == 4


def test_drawings_take_their_colours_from_the_page(results):
    for _, svg in [*quality_drawings(results), *latency_drawings(results)]:
        assert "var(--text)" in svg or "var(--line)" in svg
        assert "#ffffff" not in svg
        assert "#000000" not in svg
        assert re.match(r'<svg role="img" aria-label="[^"]+" viewBox="0 0 [\d.]+ [\d.]+">', svg)
    assert quality_drawings(results) == quality_drawings(results)


@pytest.mark.slow
def test_the_page_draws_what_each_row_cut(results, tmp_path):
    results["rows"][1]["pruning"] = {"blocks": [3, 4, 9]}
    results["rows"][2]["pruning"] = {"neurons": {"0": [1, 2]}, "kv_groups": {"5": [0]}}
    results["rows"][3]["pruning"] = {"as": "wanda-sp 20%", "pad_to": 64}
    render(results, tmp_path / "report")
    text = (tmp_path / "report" / "index.html").read_text("utf-8")
    assert text.count('<svg class="cut"') == 2
    assert "3 of 30 blocks" in text
    assert "3 of 270 heads, 2 of 46,080 neurons" in text


def test_the_verdict_is_three_sentences_with_numbers_of_the_table(results):
    quality, speed, engine = verdict(more_runs(results))
    assert quality == (
        "With 20% of the parameters removed, depth has the lower perplexity, 14.00 (depth 20%) against 120.0 "
        "(wanda-sp 20%); the original's is 10.00; no spread of these is known."
    )
    assert speed == (
        "Speed against the original, under pyprune at batch 1: 1.25x for depth 20% (faster), 1.00x for wanda-sp 20%, "
        "padded (undecided)."
    )
    assert engine == (
        "pyprune against Hugging Face transformers on the original, with 95 % intervals: 2.00x (2.00 to 2.00) at batch "
        "1, 2.00x (2.00 to 2.00) at batch 8."
    )


def test_a_verdict_of_few_runs_calls_nothing_faster(results):
    speed = verdict(results)[1]
    assert speed.endswith("; 3 runs are too few to call a difference real.")
    assert "faster" not in speed
    assert verdict(results)[2] == (
        "pyprune against Hugging Face transformers on the original: 2.00x at batch 1, 2.00x at batch 8; 3 runs are too "
        "few to call a difference real."
    )


@pytest.mark.parametrize(
    ("stderr", "told", "found"),
    [
        (0.1, "depth has the lower perplexity, 14.00 (depth 20%) against 15.00", "standard errors: none of these)"),
        (0.5, "depth and width have about the same perplexity, 14.00 (depth 20%)", "standard errors: wanda-sp 20%)"),
        (None, "depth has the lower perplexity, 14.00", "; no spread is known)"),
    ],
)
def test_perplexities_within_two_standard_errors_are_about_the_same(results, stderr, told, found):
    for row in results["rows"]:
        row["ppl"] = 15.0 if row["ppl"] == 120.0 else row["ppl"]
        if stderr is not None:
            row["ppl_stderr"] = stderr
    quality = verdict(results)[0]
    assert told in quality
    assert quality.endswith("; no spread of these is known.") == (stderr is None)
    [sentence] = [sentence for sentence in findings(results) if "has the lowest perplexity" in sentence]
    assert found in sentence


def test_a_verdict_says_what_it_can(results):
    for row in results["rows"]:
        row["ppl"] = None
    assert len(verdict(results)) == 2
    results["timings"] = [timing for timing in results["timings"] if timing["engine"] == "hf"]
    assert [sentence[:18] for sentence in verdict(results)] == ["Speed against the "]
    results["timings"] = []
    assert verdict(results) == ["Nothing was timed, and no quality was taken."]


def test_the_table_of_findings_counts_settings_as_the_sentences_do(results):
    for timing in results["timings"]:
        if timing["row"] == "wanda-sp 20%":
            timing["seconds"] = [second * 1.25 for second in timing["seconds"]]
    header, rows = speed_cells(more_runs(results))
    cells = {tuple(row[:2]): dict(zip(header, row, strict=True)) for row in rows}
    assert len(cells) == 6
    slower = cells["wanda-sp 20%", "hf"]
    assert [slower[name] for name in ("faster", "undecided", "slower")] == ["0", "0", "2"]
    assert slower["speed-up"] == "0.72x to 0.72x"
    assert slower["against its bytes"] == "below in 2"


def test_the_page_says_where_the_reference_implementation_ran(results):
    told = "pyprune ran on its reference implementation"
    assert told not in page(results)
    results["machine"]["kernels"] = {"library_loaded": False, "reason": "switched off by <b>"}
    assert f"{told}, slowly, not on its kernels: switched off by &lt;b&gt;." in page(results)
    results["settings"]["device"] = "cuda:0"
    assert told not in page(results)
    results["settings"]["device"], results["machine"]["kernels"]["library_loaded"] = "cpu", True
    assert told not in page(results)


def test_text_from_the_results_is_escaped(results):
    results["command"] = "pyprune compare '<script>alert(1)</script>'"
    results["machine"]["cpu"] = "A & B <i>"
    text = page(results)
    assert "model &lt;b&gt;&amp;" in text
    assert "<script>alert" not in text
    assert "A &amp; B &lt;i&gt;" in text


def test_a_taken_directory_is_refused_before_anything_is_drawn_and_left_as_it_was(results, tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text("keep")
    monkeypatch.setattr("pyprune.study.report.latency_drawings", lambda *_: pytest.fail("it was drawn"))
    with pytest.raises(InputError, match="not empty"):
        render(results, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_results_of_another_format_are_refused(results, tmp_path):
    with pytest.raises(InputError, match="'other/2'"):
        render({**results, "format": "other/2"}, tmp_path / "report")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_interrupt_while_writing_leaves_nothing_behind(results, tmp_path, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pyprune.study.report.csv_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        render(results, tmp_path / "report")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("part", ["latency_by_batch", "csv_text", "page"])
@pytest.mark.parametrize("error", [ValueError("no such marker"), KeyboardInterrupt()])
def test_results_are_kept_whatever_fails_to_be_drawn(results, tmp_path, monkeypatch, part, error):
    def fail(*_: object) -> None:
        raise error

    target = tmp_path / "report"
    with monkeypatch.context() as patch:
        for drawing, nothing in (("quality_drawings", []), ("latency_drawings", []), ("quality_and_throughput", b"")):
            patch.setattr(f"pyprune.study.report.{drawing}", lambda *_, nothing=nothing: nothing)
        patch.setattr(f"pyprune.study.report.{part}", fail)
        expected = ReportError if isinstance(error, ValueError) else KeyboardInterrupt
        with pytest.raises(expected) as raised:
            save(results, target)
    if expected is ReportError:
        assert "no such marker" in str(raised.value)
        assert f"pyprune report {target / 'results.json'} --out DIR" in str(raised.value)
    assert [path.name for path in target.iterdir()] == ["results.json"]
    assert json.loads((target / "results.json").read_text("utf-8")) == results


@pytest.mark.slow
def test_results_are_saved_with_all_that_they_are_drawn_as(results, report, tmp_path):
    save(results, tmp_path / "whole")
    assert {path.name for path in (tmp_path / "whole").iterdir()} == {path.name for path in report.iterdir()}
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (report / path.name).read_bytes()


def test_saving_into_a_taken_directory_is_refused(results, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="not empty"):
        save(results, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_no_terminal_line_is_wider_than_100_columns_and_no_number_is_cut(results):
    from rich.console import Console

    for row in results["rows"]:
        row.update(parameters=13_015_864_320, bytes_per_token=25_704_038_400, ppl=123456.78)
    target = io.StringIO()
    console = Console(file=target, width=100)
    for part in terminal(results):
        console.print(part)
    text = target.getvalue()
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "…" not in text
    assert "13015.86" in text
    assert "25704.04" in text
    assert "1.23e+05" in text
    assert "wanda-sp 20%, padded" in text


def test_the_sample_count_and_the_spread_are_stated(results):
    sentence = findings(results)[0]
    assert "median of 3 interleaved runs after 1 warm-up" in sentence
    assert "1.38 (wanda-sp 20%, padded, hf, batch 1, 16 new tokens)" in sentence
    assert "3 runs cannot decide whether a difference is real" in sentence


def more_runs(results):
    """The same seconds three times over: nine runs, of which something can be said."""
    for timing in results["timings"]:
        timing["seconds"] = timing["seconds"] * 3
    return results


def test_with_few_runs_nothing_is_called_faster_or_slower(results):
    text = " ".join(findings(results)[1:])
    assert "faster" not in text
    assert "slower" not in text
    assert "wanda-sp 20% under hf: 0.90x to 0.90x measured, 1.25x by bytes." in text
    assert "too few runs to decide" in text


def test_slower_width_is_reported_as_the_paper_found_it(results):
    for timing in results["timings"]:
        if timing["row"] == "wanda-sp 20%":
            timing["seconds"] = [second * 1.25 for second in timing["seconds"]]
    results = more_runs(results)
    text = " ".join(findings(results))
    assert (
        "wanda-sp 20% under hf: 0.72x to 0.72x measured, 1.25x by bytes. Of 2 settings, against the original: " in text
    )
    assert "slower in 2; against what the bytes predict: below in 2." in text
    assert "under hf on this machine: of 2 settings, Wanda-sp is slower than the original in 2, faster in 0" in text


def test_faster_width_is_reported_as_faster_though_the_paper_found_otherwise(results):
    for timing in results["timings"]:
        if timing["row"] == "wanda-sp 20%":
            timing["seconds"] = [second / 2 for second in timing["seconds"]]
    results = more_runs(results)
    text = " ".join(findings(results))
    assert "wanda-sp 20% under hf: 1.80x to 1.80x measured" in text
    assert "faster in 2; against what the bytes predict: above in 2." in text
    assert "Under hf this machine does not show the paper's GPU result" in text


def test_a_difference_within_the_interval_is_called_undecided(results):
    # Padded: ratios of 1.25, 1.0 and 0.9, three of each, have an interval on both sides of 1.
    results = more_runs(results)
    assert (
        "padded under hf: 1.00x to 1.00x measured, 1.24x by bytes. Of 2 settings, against the original: undecided"
        in " ".join(findings(results))
    )


def test_the_lowest_perplexity_of_a_ratio_is_named_and_the_original_is_no_competitor(results):
    assert any(
        s.startswith("At 20%, depth 20% has the lowest perplexity on the held-out text, 14.00")
        for s in findings(results)
    )
