"""A directory with the paper's tables and figures from measured files: a page, PNG, CSV and Markdown."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from typing import Any

from pyprune.files import whole_directory, write_text
from pyprune.study.page import html_page, html_table, inline_figure
from pyprune.study.paper import facts
from pyprune.study.paper.evidence import Evidence, collect
from pyprune.study.paper.figures import equal_bytes, figure_1, figure_2, figure_6, saw_tooth
from pyprune.study.paper.tables import alignment_table, comma_separated, markdown, memory_table, speed_table
from pyprune.study.paper.verdicts import findings

BANNER = "Dry run: everything here comes from a run on a CPU in tiny sizes. No number or line of ours is a measurement."
NOTES = (
    "The paper's numbers are those that it prints (Kim et al., Shortened LLaMA, Tables 1, 2, 4 and 9); its curves are "
    "not printed as numbers, so its points in the figures are those of the tables, at batch 1. It timed generate of "
    "Hugging Face's transformers in 20 runs. Perplexity and accuracy, which its Figure 1 and Table 2 also show, are "
    "not measured here: the weights are random.",
    "A step is a replay of one decode step in the middle of a generation of 12 + 128 tokens, without the prompt's "
    "pass; a latency from steps is 128 of them. Speed is over the original under the same engine, paired round by "
    "round, with the 95 % interval of the median where there are 6 runs. By bytes is what it would be if only the "
    "bytes that a step reads counted: weights, and the cache up to the middle. FLAP's ragged widths are drawn with a "
    "fixed seed from the paper's means and deviations; LLM-Pruner's first four and last two blocks are whole.",
    "GB in the paper's Table 9 are taken as GiB: LLaMA-7B's weights alone are 12.55 GiB, or 13.5 GB, of its 12.8. "
    "It does not say how it measured: from batch 1 to 64 its numbers grow by about three times the bytes of the cache.",
)


def render(
    files: Sequence[str | os.PathLike[str]], data: Sequence[Any], directory: str | os.PathLike[str]
) -> list[str]:
    """Write the pages of all models that the files hold; the names of what was written. Whole or not at all.

    InputError as `evidence.collect`, and for a taken directory.
    """
    evidences = collect(files, data)
    written: dict[str, bytes | str] = {}
    parts: list[str] = []
    if evidences[0].dry_run:
        parts.append(f'<p class="warning">{escape(BANNER)}</p>')
    text = [f"**{BANNER}**\n"] if evidences[0].dry_run else []
    for evidence in evidences:
        prefix = "" if len(evidences) == 1 else f"{evidence.model}-"
        html, lines = _model(evidence, prefix, written)
        parts += html
        text += lines
    for place, sweep in enumerate(evidences[0].sweeps):
        name = f"saw-tooth{f'-{place + 1}' if place else ''}.png"
        image = written[name] = saw_tooth({**sweep, "dry_run": evidences[0].dry_run})
        parts.append(inline_figure("Time against width", image))
    parts += ["<h2>How to read it</h2>", *(f"<p>{escape(note)}</p>" for note in NOTES)]
    title = "The paper's speed tables and figures" + (", from a dry run" if evidences[0].dry_run else "")
    written = {"index.html": html_page(title, parts), "report.md": "\n".join([f"# {title}\n", *text]), **written}
    with whole_directory(directory) as scratch:
        for name, content in written.items():
            if isinstance(content, bytes):
                (scratch / name).write_bytes(content)
            else:
                write_text(scratch / name, content)
    return list(written)


def _model(evidence: Evidence, prefix: str, written: dict[str, bytes | str]) -> tuple[list[str], list[str]]:
    """The HTML parts and Markdown of one model; its files are added to `written`."""
    name, number = facts.MODELS[evidence.model], {"llama-7b": "2", "vicuna-13b": "4"}[evidence.model]
    sentences = findings(evidence)
    tables = {
        f"Table {number}, speed": (f"{prefix}table{number}.csv", speed_table(evidence)),
        "Table 9, GPU memory": (f"{prefix}table9.csv", memory_table(evidence)),
        "Alignment": (f"{prefix}alignment.csv", alignment_table(evidence)),
    }
    figures = {
        "Figure 1, speed": ("figure1.png", figure_1(evidence)),
        "Figure 2, latency against batch": ("figure2.png", figure_2(evidence)),
        "Figure 6, latency against throughput": ("figure6.png", figure_6(evidence)),
        "Speed against bytes": ("bytes.png", equal_bytes(evidence)),
    }
    html = [f"<h2>{escape(name)}: where it agrees with the paper, where not, and why</h2>"]
    text = [f"## {name}\n"]
    for heading, lines in sentences.items():
        html.append(f"<h3>{escape(heading)}</h3>")
        html.append("<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in lines) + "</ul>")
        text += [f"### {heading}\n", *(f"- {sentence}" for sentence in lines), ""]
    for caption, (file, cells) in tables.items():
        if not cells[1]:
            continue
        written[file] = comma_separated(cells)
        html += [f"<h2>{escape(name)}: {escape(caption)}</h2>", html_table(*cells)]
        text += [f"### {caption}\n", markdown(cells)]
    for caption, (file, image) in figures.items():
        written[prefix + file] = image
        html.append(inline_figure(f"{name}: {caption}", image))
    return html, text
