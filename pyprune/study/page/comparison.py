"""The page of a comparison: the verdict and the plot first, then what they stand on."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from pyprune.study.columns import Table, cells, shown
from pyprune.study.cut_diagram import page_rules
from pyprune.study.depth_choice import choices_of
from pyprune.study.findings import methods_of, other_cells, speed_cells
from pyprune.study.labels import is_checkpoint, label_of
from pyprune.study.page.document import downloads, html_page, html_table, panels
from pyprune.study.table import model_columns, model_lines, timing_columns, timing_lines
from pyprune.study.verdict import verdict

Drawings = Sequence[tuple[str, str]]


def page(
    results: dict[str, Any],
    quality: Drawings = (),
    latency: Drawings = (),
    cuts: Sequence[str] = (),
    held: Sequence[tuple[str, str, bytes]] = (),
) -> str:
    """The HTML text. Everything that comes from the results is escaped.

    quality, latency: captions and SVG elements. cuts: elements of `cut_diagram`. held: name, media type and content of
    the files that can be saved from the page.
    """
    speeds = speed_cells(results)
    parts = [
        '<div class="verdict">' + "".join(f"<p>{escape(sentence)}</p>" for sentence in verdict(results)) + "</div>",
        *_reference_part(results),
        panels(quality) if quality else "",
        f'<p class="note">{escape(introduction(results))}</p>',
        downloads(held) if held else "",
        "<h2>Findings</h2>",
        html_table(["", ""], other_cells(results), "prose"),
        *_speed_part(speeds),
        "<h2>The models</h2>",
        html_table(*model_cells(results), "sortable"),
        *_cut_part(cuts),
        *_task_part(results),
        "<h2>Latency and throughput</h2>",
        '<p class="note">Latency T is the time for a batch of M prompts to become M·L new tokens; throughput is M·L/T. '
        "Medians; the range is that of the runs kept. The speed-up is over the original under the same engine, paired "
        "round by round; by bytes is what it would be if only the weights read per token counted. A click on a "
        "column's name sorts by it.</p>",
        panels(latency) if latency else "",
        html_table(*timing_cells(results), "sortable"),
        "<h2>Machine and versions</h2>",
        html_table(["", ""], machine_cells(results["machine"]), "prose"),
        "<h2>Texts</h2>",
        html_table(
            ["", "source", "windows", "tokens each", "seed", "SHA-256 of the token ids"],
            [text_cells(name, results[name]) for name in ("calibration", "evaluation")],
        ),
        "<h2>To reproduce</h2>",
        f"<pre>{escape(results['command'])}</pre>",
        f'<p class="note">Measured {escape(results["created"])}.</p>',
    ]
    return html_page(f"Depth and width pruning of {results['model']['name']}", parts)


def _reference_part(results: dict[str, Any]) -> list[str]:
    """A line where pyprune ran on a CPU without its kernels; older results do not say it."""
    kernels = results["machine"].get("kernels")
    if kernels is None or kernels["library_loaded"] or results["settings"].get("device", "cpu") != "cpu":
        return []
    told = f"pyprune ran on its reference implementation, slowly, not on its kernels: {kernels['reason']}."
    return [f'<p class="note">{escape(told)}</p>']


def _speed_part(speeds: tuple[list[str], list[list[str]]]) -> list[str]:
    if not speeds[1]:
        return []
    return [
        "<h2>Speed against the original</h2>",
        '<p class="note">Over all batches and output lengths: the least and the greatest speed-up, and in how many of '
        "these settings the 95 % interval of the median says faster or slower.</p>",
        html_table(*speeds, "sortable"),
    ]


def _cut_part(cuts: Sequence[str]) -> list[str]:
    if not cuts:
        return []
    note = (
        "Each line is a block, the first one at the bottom: its attention heads and its FFN. Dashed is what went; the "
        "numbers are the heads and neurons that stay."
    )
    return [
        f"<style>{page_rules()}</style>",
        "<h2>What was cut</h2>",
        f'<p class="note">{note}</p>',
        f'<div class="stacks">{"".join(cuts)}</div>',
    ]


def introduction(results: dict[str, Any]) -> str:
    """What was compared and how."""
    protocol, options = results["protocol"], results["settings"]
    lengths = " and ".join(str(length) for length in protocol["output_tokens"])
    methods = ", ".join(label_of(method) for method in methods_of(results))
    depths = "; ".join(str(choice) for choice in choices_of(results))
    given = [line.row["name"] for line in model_lines(results) if is_checkpoint(line.row["method"])]
    others = f" Beside them stand the checkpoints {', '.join(given)}." if given else ""
    return (
        f"Depth: {depths}. Width: heads and FFNs narrowed by {methods} to the same number of parameters; in padded "
        f"rows the FFN width is then filled with zeros up to a multiple of {options['pad_multiple']}.{others} Protocol "
        f"{protocol['name']}: {protocol['input_tokens']} input tokens, L = {lengths} new tokens, weights in "
        f"{options['dtype']}, Hugging Face transformers (sdpa attention, not compiled) and pyprune in turn."
    )


def model_cells(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table of models."""
    return cells(shown(model_columns(results), Table.MODELS), model_lines(results))


def task_cells(results: dict[str, Any]) -> tuple[list[str], list[list[str]]] | None:
    """Header and cells of the table of tasks; None where no accuracy was taken."""
    columns = shown(model_columns(results), Table.TASKS)
    if not columns:
        return None
    return cells([*shown(model_columns(results), Table.MODELS)[:1], *columns], model_lines(results))


def _task_part(results: dict[str, Any]) -> list[str]:
    tasks = task_cells(results)
    if tasks is None:
        return []
    return [
        "<h2>Accuracy by task</h2>",
        '<p class="note">In percent, zero-shot, with its standard error over documents: acc_norm for HellaSwag, ARC-c '
        "and OBQA, else acc. The mean over the tasks stands in the table above.</p>",
        html_table(*tasks, "sortable"),
    ]


def timing_cells(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table of timings."""
    return cells(shown(timing_columns(results), Table.TIMINGS), timing_lines(results))


def machine_cells(machine: dict[str, Any]) -> list[list[str]]:
    """Name and value of each fact about the machine."""
    memory = machine["memory_bytes"]
    facts = {
        "CPU": machine["cpu"],
        "flags that matter": " ".join(machine["cpu_flags"]) or "none found",
        "cores": f"{machine['cores']}, of which usable {machine['usable_cores']}",
        "threads": str(machine["threads"]),
        "memory": "unknown" if memory is None else f"{memory / 2**30:.1f} GiB",
        "GPU": ", ".join(map(gpu_cell, machine["gpus"])) or "none",
        "system": f"{machine['system']}, {machine['architecture']}",
        "Python": machine["python"],
        "packages": ", ".join(f"{name} {version or 'unknown'}" for name, version in machine["versions"].items()),
        "commit": machine["commit"] or "unknown",
    }
    return [[name, str(value)] for name, value in facts.items()]


def gpu_cell(gpu: dict[str, Any]) -> str:
    """A GPU's name, memory and, where known, driver."""
    driver = f", driver {gpu['driver']}" if gpu.get("driver") else ""
    return f"{gpu['name']} ({gpu['memory_bytes'] / 2**30:.1f} GiB{driver})"


def text_cells(name: str, fingerprint: dict[str, Any]) -> list[str]:
    seed = "in order" if fingerprint["seed"] is None else str(fingerprint["seed"])
    windows, length = str(fingerprint["samples"]), str(fingerprint["seq_len"])
    rules = [f"{rule} {fingerprint[rule]}" for rule in ("packing", "bos") if rule in fingerprint]
    source = ", ".join([fingerprint["source"], *rules])
    return [name, source, windows, length, seed, fingerprint["sha256"]]
