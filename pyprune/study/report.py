"""What a comparison leaves behind: JSON, CSV, figures, a page; and the tables for the terminal."""

from __future__ import annotations

import csv
import io
import os
from typing import Any

from pyprune.files import json_text
from pyprune.study.columns import Table, cells, shown
from pyprune.study.cut_diagram import Cut, cut_element
from pyprune.study.cuts import comparison_cuts
from pyprune.study.findings import findings
from pyprune.study.page import model_cells, page, task_cells
from pyprune.study.plots import latency_by_batch, latency_drawings, quality_and_throughput, quality_drawings
from pyprune.study.results_directory import RESULTS, draw_results, save_results
from pyprune.study.table import FORMAT, engines, settings, table, timing_columns, timing_lines


def save(results: dict[str, Any], directory: str | os.PathLike[str]) -> None:
    """Write a comparison into a new directory, as `save_results` does."""
    save_results(results, directory, drawn)


def render(results: dict[str, Any], directory: str | os.PathLike[str]) -> None:
    """Write the same files as `save` from results that are on disk already, as `draw_results` does."""
    draw_results(results, directory, FORMAT, drawn)


def drawn(results: dict[str, Any]) -> dict[str, bytes]:
    """`table.csv`, two PNG figures and `index.html`, from the results alone."""
    table_csv = csv_text(results).encode()
    held = [
        (RESULTS, "application/json", json_text(results).encode()),
        ("table.csv", "text/csv", table_csv),
        ("samples.csv", "text/csv", samples_csv(results).encode()),
    ]
    cuts = [cut_element(cut) for cut in _cuts(results)]
    text = page(results, quality_drawings(results), latency_drawings(results), cuts, held)
    return {
        "table.csv": table_csv,
        "figure1.png": quality_and_throughput(results),
        "figure2.png": latency_by_batch(results),
        "index.html": text.encode(),
    }


def _cuts(results: dict[str, Any]) -> list[Cut]:
    """None where no row lists what it removes: older results, and comparisons of checkpoints alone."""
    listed = any(row["pruning"] and "as" not in row["pruning"] for row in results["rows"])
    return comparison_cuts(results, RESULTS) if listed else []


def samples_csv(results: dict[str, Any]) -> str:
    """Every raw sample as CSV, a line a run in the order in which they were taken: seconds of the whole batch."""
    target = io.StringIO(newline="")
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(["row", "engine", "batch", "output_tokens", "run", "seconds"])
    for timing in results["timings"]:
        setting = [timing[name] for name in ("row", "engine", "batch", "output_tokens")]
        writer.writerows([*setting, run, seconds] for run, seconds in enumerate(timing["seconds"], start=1))
    return target.getvalue()


def csv_text(results: dict[str, Any]) -> str:
    """The derived table as CSV, a header line first."""
    target = io.StringIO(newline="")
    names = [column.name for column in shown(timing_columns(results), Table.CSV)]
    writer = csv.DictWriter(target, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table(results))
    return target.getvalue()


def terminal(results: dict[str, Any]) -> list[Any]:
    """Renderables for a rich console: the models, a table of timings for each batch and output length, the findings.

    No table is wider than 100 columns."""
    from rich.padding import Padding
    from rich.text import Text

    parts: list[Any] = [_grid(f"Models: {results['model']['name']}", *model_cells(results))]
    tasks = task_cells(results)
    parts += [_grid("Accuracy by task, %", *tasks)] if tasks else []
    parts += [_timings(results, batch, length) for batch, length in settings(results)]
    return parts + [Padding(Text("- " + sentence), (0, 0, 0, 1)) for sentence in findings(results)]


def _timings(results: dict[str, Any], batch: int, length: int) -> Any:
    """A line a row: what holds for the row before and after what each engine took."""
    columns = timing_columns(results)
    once, per_engine = shown(columns, Table.SCREEN), shown(columns, Table.SCREEN_ENGINE)
    first = columns.index(per_engine[0])
    before = [column for column in once if columns.index(column) < first]
    lines = [line for line in timing_lines(results) if (line.batch, line.output_tokens) == (batch, length)]
    header: list[str] = []
    rows: dict[str, list[str]] = {line.row["name"]: [] for line in lines}

    def add(shown_columns: list[Any], engine: str) -> None:
        names, texts = cells(shown_columns, [line for line in lines if line.engine == engine])
        header.extend(name.format(engine=engine) for name in names)
        for row, text in zip(rows.values(), texts, strict=True):
            row.extend(text)

    names = engines(results)
    last = [line for line in lines if line.engine == names[-1]]  # which is compared with the ones before it
    after = [column for column in once if column not in before and any(column.value(line) is not None for line in last)]
    add(before, names[-1])
    for engine in names:
        add(per_engine, engine)
    add(after, names[-1])
    title = f"Batch {batch}, {length} new tokens (median latency of the batch ± half its range)"
    return _grid(title, header, list(rows.values()))


def _grid(title: str, header: list[str], rows: list[list[str]]) -> Any:
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
    for position, name in enumerate(header):
        grid.add_column(Text(name), justify="left" if position == 0 else "right", no_wrap=position > 0)
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    return grid
