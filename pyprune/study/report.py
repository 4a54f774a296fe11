"""What a comparison leaves behind: JSON, CSV, figures, a page; and the tables for the terminal."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

from pyprune.errors import InputError
from pyprune.files import whole_directory, write_json, write_text
from pyprune.study.findings import findings
from pyprune.study.page import model_cells, page
from pyprune.study.plots import latency_by_batch, quality_and_throughput
from pyprune.study.table import COLUMNS, engines, settings, table

FORMAT = "pyprune-comparison/1"


def render(results: dict[str, Any], directory: str | os.PathLike[str]) -> None:
    """Write `results.json` (all raw samples), `table.csv`, two PNG figures and `index.html`; whole or not at all.

    Everything is drawn from `results` alone. Raises InputError when the directory is taken or the format is not ours.
    """
    if results.get("format") != FORMAT:
        raise InputError(f"results of format {results.get('format')!r}: {FORMAT!r} is expected")
    figures = {
        "figure1.png": ("Quality, latency and throughput", quality_and_throughput(results)),
        "figure2.png": ("Latency against batch size", latency_by_batch(results)),
    }
    with whole_directory(directory) as scratch:
        write_json(scratch / "results.json", results)
        write_csv(scratch / "table.csv", table(results))
        for name, (_, image) in figures.items():
            (scratch / name).write_bytes(image)
        write_text(scratch / "index.html", page(results, dict(figures.values())))


def write_csv(path: Path, lines: list[dict[str, Any]]) -> None:
    """The derived table as CSV, a header line first."""
    with path.open("w", encoding="utf-8", newline="") as target:
        writer = csv.DictWriter(target, fieldnames=COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def terminal(results: dict[str, Any]) -> list[Any]:
    """Renderables for a rich console: the models, a table of timings for each batch and output length, the findings.

    No table is wider than 100 columns."""
    from rich.padding import Padding
    from rich.text import Text

    shown: list[Any] = [_grid(f"Models: {results['model']['name']}", *model_cells(results))]
    shown += [_timings(results, batch, length) for batch, length in settings(results)]
    return shown + [Padding(Text("- " + sentence), (0, 0, 0, 1)) for sentence in findings(results)]


def _timings(results: dict[str, Any], batch: int, length: int) -> Any:
    names = engines(results)
    header = ["row", "by bytes"]
    for engine in names:
        header += [f"{engine} ms", "tok/s", "speed-up"]
    header += ["ours/hf"] if {"hf", "pyprune"} <= set(names) else []
    lines = [line for line in table(results) if (line["batch"], line["output_tokens"]) == (batch, length)]
    rows = []
    for name in dict.fromkeys(line["row"] for line in lines):
        own = {line["engine"]: line for line in lines if line["row"] == name}
        cells = [name, f"{own[names[0]]['speedup_by_bytes']:.2f}x"]
        for engine in names:
            line = own[engine]
            half_range = 50 * (line["latency_max_s"] - line["latency_min_s"]) / line["latency_s"]
            latency = f"{_short(1000 * line['latency_s'])} ±{half_range:.0f}%"
            cells += [latency, _short(line["tokens_per_s"]), f"{line['speedup']:.2f}x"]
        if "ours/hf" in header:
            cells.append(f"{own['pyprune']['pyprune_vs_hf']:.2f}x")
        rows.append(cells)
    return _grid(f"Batch {batch}, {length} new tokens (median latency of the batch ± half its range)", header, rows)


def _short(value: float) -> str:
    """Four digits where there are that many before the point, else up to one after it."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _grid(title: str, header: list[str], rows: list[list[str]]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
    for position, name in enumerate(header):
        grid.add_column(Text(name), justify="left" if position == 0 else "right", no_wrap=position > 0)
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    return grid
