"""The paper's Tables 2 and 9 with what was measured beside what it prints."""

from __future__ import annotations

import csv
import io
import statistics

from pyprune.study.alignment import POWERS, alignments
from pyprune.study.paper import facts
from pyprune.study.paper.evidence import GENERATION, STEP, Evidence, Timing
from pyprune.study.paper.verdicts import agreement, by_bytes, paper_gpu, peak_of, step_seconds

DRY, NONE = "dry run", ""
LAYOUTS = ("packed", "padded", "64")
Cells = tuple[list[str], list[list[str]]]
"""Header and rows."""


def speed_table(evidence: Evidence) -> Cells:
    """Table 2's speed columns (Table 4's for Vicuna-13B): 12 input tokens, 128 new ones, batch 1. Every `paper` column
    stands beside ours; a step is a replay in the middle of that generation."""
    gpu = paper_gpu(evidence)
    header = [
        "ratio", "row", f"paper {gpu}: latency s", "HF here: latency s", "pyprune: latency s",
        f"paper {gpu}: tokens/s", "HF here: tokens/s", "pyprune: tokens/s",
        f"paper {gpu}: speed", "HF here: speed", "pyprune: speed", "pyprune: step ms", "pyprune: step speed",
        "by bytes", "steps against paper",
    ]  # fmt: skip
    return header, [
        _speed_row(evidence, method, ratio, layout, gpu)
        for ratio, method in table_rows(evidence.model)
        for layout in LAYOUTS
        if layout == "packed" or (method, ratio, layout) in evidence.rows
    ]


def table_rows(model: str) -> list[tuple[str | None, str]]:
    """(ratio, method) of Table 2 in its order."""
    order = ("wanda-sp", "flap", "llm-pruner", "depth")
    return [(None, facts.ORIGINAL), *((ratio, method) for ratio in facts.ratios(model) for method in order)]


def _speed_row(evidence: Evidence, method: str, ratio: str | None, layout: str, gpu: str) -> list[str]:
    paper = facts.speed(evidence.model, ratio, method, gpu) if layout == "packed" else None
    paper_speedup = facts.speedup(evidence.model, ratio, method, gpu) if paper else None
    generations = {
        engine: evidence.timing(method, ratio, engine, GENERATION, 1, layout, facts.NEW_TOKENS)
        for engine in ("hf", "pyprune")
    }
    if evidence.dry_run:
        generations = {
            engine: evidence.timing(method, ratio, engine, GENERATION, 1, layout) for engine in ("hf", "pyprune")
        }
    step = evidence.timing(method, ratio, "pyprune", STEP, 1, layout)
    any_generations = {engine: evidence.timing(method, ratio, engine, GENERATION, 1, layout) for engine in generations}
    any_timing = step or any_generations["pyprune"] or any_generations["hf"]
    predicted = None if any_timing is None else by_bytes(evidence, any_timing)
    name = facts.NAMES[method] + {"packed": "", "padded": ", padded strides", "64": ", width to 64"}[layout]
    verdict = NONE
    if step is not None and step.gain is not None and paper_speedup is not None and method != facts.ORIGINAL:
        verdict = agreement(step.gain, paper_speedup)

    def ours(text: str) -> str:
        return DRY if evidence.dry_run and text else text

    return [
        ratio or "",
        name,
        _printed(None if paper is None else paper.latency_s, paper is not None),
        *(ours(_latency(generations[engine])) for engine in ("hf", "pyprune")),
        _printed(None if paper is None else paper.tokens_per_s, paper is not None),
        *(ours(_throughput(generations[engine])) for engine in ("hf", "pyprune")),
        NONE if paper_speedup is None else f"{paper_speedup:.2f}x",
        *(ours(_gain(any_generations[engine])) for engine in ("hf", "pyprune")),
        ours(NONE if step is None else f"{1e3 * step_seconds(step):.3f}"),
        ours(_gain(step)),
        ours(NONE if predicted is None else f"{predicted:.2f}x"),
        ours(verdict),
    ]


def _printed(value: float | None, has_row: bool) -> str:
    return NONE if not has_row else "OOM" if value is None else f"{value:g}"


def _latency(timing: Timing | None) -> str:
    return NONE if timing is None else f"{statistics.median(timing.seconds):.3f}"


def _throughput(timing: Timing | None) -> str:
    if timing is None:
        return NONE
    return f"{timing.batch * timing.new_tokens / statistics.median(timing.seconds):.1f}"


def _gain(timing: Timing | None) -> str:
    gain = None if timing is None else timing.gain
    if gain is None:
        return NONE
    interval = "" if gain["low"] is None else f" ({gain['low']:.2f} to {gain['high']:.2f})"
    return f"{gain['median']:.2f}x{interval}"


def memory_table(evidence: Evidence) -> Cells:
    """Table 9: GPU memory for 12 input tokens, by new tokens L and batch M, the paper's GB beside our GiB."""
    header = ["ratio", "row", "L", "M", "paper H100: GB", "HF here: GiB", "pyprune: GiB", "HF over paper"]
    lines = []
    for cell in facts.memories():
        if cell.model != evidence.model:
            continue
        peaks = {engine: peak_of(evidence, cell, engine) for engine in ("hf", "pyprune")}
        cells = []
        for peak in peaks.values():
            text = NONE if peak is None else _bytes(peak.bytes, peak.error)
            cells.append(DRY if evidence.dry_run and peak is not None else text)
        hf, share = peaks["hf"], NONE
        if hf is not None and hf.bytes is not None and cell.gb is not None and not evidence.dry_run:
            share = f"{hf.bytes / 2**30 / cell.gb:.2f}"
        lines.append(
            [
                cell.ratio or "", "Original" if cell.ratio is None else "Depth", str(cell.output_tokens),
                str(cell.batch), "OOM" if cell.gb is None else f"{cell.gb:g}", *cells, share,
            ]
        )  # fmt: skip
    return header, lines


def _bytes(count: int | None, error: str | None) -> str:
    if count is not None:
        return f"{count / 2**30:.1f}"
    return "OOM" if error and "OutOfMemory" in error else "failed" if error else NONE


def alignment_table(evidence: Evidence) -> Cells:
    """Of a width sweep: each side's median time of the widths of every power of two, over what their size predicts; the
    best class is 1."""
    header = ["linear", "M", "side", "multiples that matter", *(f"{power}" for power in POWERS)]
    rows = []
    for sweep in () if evidence.dry_run else evidence.sweeps:
        for alignment in sorted(
            alignments(sweep["points"], sweep["hidden"]), key=lambda alignment: (alignment.rows, alignment.role)
        ):
            costs = [f"{alignment.cost[power]:.2f}" if power in alignment.cost else NONE for power in POWERS]
            rows.append(
                [
                    alignment.role,
                    str(alignment.rows),
                    alignment.side,
                    "none" if alignment.needed == 1 else str(alignment.needed),
                    *costs,
                ]
            )
    return header, rows


def comma_separated(cells: Cells) -> str:
    """The table as CSV."""
    target = io.StringIO(newline="")
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(cells[0])
    writer.writerows(cells[1])
    return target.getvalue()


def markdown(cells: Cells) -> str:
    """The table in Markdown."""
    header, rows = cells
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"
