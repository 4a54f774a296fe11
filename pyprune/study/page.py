"""The comparison as one self-contained HTML page: no script, no network, figures inline."""

from __future__ import annotations

import base64
from html import escape
from typing import Any

from pyprune.study.columns import Table, cells, shown
from pyprune.study.depth_choice import choices_of
from pyprune.study.findings import findings, methods_of
from pyprune.study.labels import is_checkpoint, label_of
from pyprune.study.table import model_columns, model_lines, timing_columns, timing_lines

STYLE = """
:root { color-scheme: light dark; --text: #222; --ground: #fff; --line: #ddd; --code: #f4f4f4; --warning: #b00020; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e4e4; --ground: #16181b; --line: #3a3f45; --code: #22262b; --warning: #ff8a80; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--ground); max-width: 72rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.scroll { overflow-x: auto; }
.warning { color: var(--warning); font-weight: bold; border: 2px solid; padding: .5rem .8rem; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
pre { background: var(--code); padding: .6rem .8rem; overflow-x: auto; }
"""


def page(results: dict[str, Any], figures: dict[str, bytes]) -> str:
    """The HTML text. `figures`: caption to PNG bytes. Everything that comes from the results is escaped."""
    parts = [
        f"<p>{escape(introduction(results))}</p>",
        "<h2>What this machine shows</h2>",
        "<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in findings(results)) + "</ul>",
        "<h2>The models</h2>",
        html_table(*model_cells(results)),
        *_task_part(results),
        "<h2>Latency and throughput</h2>",
        "<p>Latency T is the time for a batch of M prompts to become M·L new tokens; throughput is M·L/T. "
        "Medians; the range is that of the runs kept. The speed-up is over the original under the same engine, paired "
        "round by round; by bytes is what it would be if only the weights read per token counted.</p>",
        html_table(*timing_cells(results)),
    ]
    for caption, image in figures.items():
        parts.append(inline_figure(caption, image))
    parts += [
        "<h2>Machine and versions</h2>",
        html_table(["", ""], machine_cells(results["machine"])),
        "<h2>Texts</h2>",
        html_table(
            ["", "source", "windows", "tokens each", "seed", "SHA-256 of the token ids"],
            [text_cells(name, results[name]) for name in ("calibration", "evaluation")],
        ),
        "<h2>To reproduce</h2>",
        f"<pre>{escape(results['command'])}</pre>",
        f"<p>Every raw sample is in results.json beside this page. Measured {escape(results['created'])}.</p>",
    ]
    return html_page(f"Depth and width pruning of {results['model']['name']}", parts)


def html_page(title: str, parts: list[str]) -> str:
    """A page of such parts under a title; the title is escaped, the parts are HTML already."""
    head = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
    ]
    return "\n".join([*head, *parts, "</body></html>"]) + "\n"


def inline_figure(caption: str, image: bytes) -> str:
    """A heading and a PNG inside the page itself."""
    data = base64.b64encode(image).decode("ascii")
    return f'<h2>{escape(caption)}</h2>\n<p><img alt="{escape(caption)}" src="data:image/png;base64,{data}"></p>'


def introduction(results: dict[str, Any]) -> str:
    """What was compared and how, in two sentences."""
    protocol, options = results["protocol"], results["settings"]
    lengths = " and ".join(str(length) for length in protocol["output_tokens"])
    methods = " and by ".join(label_of(method) for method in methods_of(results))
    depths = "; with ".join(str(choice) for choice in choices_of(results))
    given = [line.row["name"] for line in model_lines(results) if is_checkpoint(line.row["method"])]
    others = f" Beside them stand the checkpoints {', '.join(given)}." if given else ""
    return (
        f"The model, the same with {depths}, and with its FFN and heads narrowed by {methods} to the same number of "
        f"parameters, as it comes and with the FFN width padded to a multiple of {options['pad_multiple']}.{others} "
        f"Protocol {protocol['name']}: {protocol['input_tokens']} input tokens, L = {lengths} new tokens, weights in "
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
        "<p>In percent, zero-shot, with its standard error over documents: acc_norm for HellaSwag, ARC-c and OBQA, "
        "else acc. The mean over the tasks stands in the table above.</p>",
        html_table(*tasks),
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


def html_table(header: list[str], rows: list[list[str]]) -> str:
    """An HTML table of escaped cells that scrolls by itself when it is too wide."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
