"""What a recipe leaves behind: results as JSON, its table as CSV and Markdown, figures, and a page."""

from __future__ import annotations

import os
from html import escape
from typing import Any

from pyprune.study.page import html_page, html_table, inline_figure, machine_cells
from pyprune.study.paper.tables import comma_separated, markdown
from pyprune.study.recipes.agreement import agreement, incomparable
from pyprune.study.recipes.figures import Figures, figures
from pyprune.study.recipes.table import cells, values
from pyprune.study.results_directory import draw_results, save_results
from pyprune.study.samples import Samples

FORMAT = "pyprune-recipe/1"


def save(results: dict[str, Any], directory: str | os.PathLike[str]) -> None:
    """Write a recipe's results into a new directory, as `save_results` does."""
    save_results(results, directory, drawn)


def render(results: dict[str, Any], directory: str | os.PathLike[str]) -> None:
    """Write the same files as `save` from results that are on disk already, as `draw_results` does."""
    draw_results(results, directory, FORMAT, drawn)


def drawn(results: dict[str, Any]) -> dict[str, bytes]:
    """table.csv, table.md, figures and index.html, from the results alone."""
    images = figures(results)
    return {
        "table.csv": comma_separated(values(results)).encode(),
        "table.md": _markdown(results).encode(),
        **{name: image for name, (_, image) in images.items()},
        "index.html": _page(results, images).encode(),
    }


def written_samples(results: dict[str, Any]) -> Samples | None:
    """What the rows wrote; None where nothing was asked for."""
    entries = [row["samples"] for row in results["rows"] if "samples" in row]
    return Samples(entries[0]["settings"], [entry["model"] for entry in entries]) if entries else None


def introduction(results: dict[str, Any]) -> str:
    """What was run, in a sentence or two."""
    recipe, model = results["recipe"], results["model"]
    source = f" ({recipe['source']})" if recipe["source"] else ""
    return (
        f"{recipe['shows']}{source} Run on {model['name']}, {model['parameters'] / 1e6:.1f} M parameters in "
        f"{model['blocks']} blocks, with the budget {results['budget']['name']}."
    )


def _markdown(results: dict[str, Any]) -> str:
    parts = [f"# {results['recipe']['title']}", introduction(results), markdown(cells(results))]
    sentences, notes = agreement(results), incomparable(results)
    parts += ["## Against the paper", "\n".join(f"- {sentence}" for sentence in sentences)] if sentences else []
    parts += ["## What does not compare", "\n".join(f"- {sentence}" for sentence in notes)] if notes else []
    return "\n\n".join(parts) + "\n"


def _page(results: dict[str, Any], images: Figures) -> str:
    parts = [f"<p>{escape(introduction(results))}</p>"]
    sentences, notes = agreement(results), incomparable(results)
    if sentences:
        parts += ["<h2>Where this model agrees with the paper, and where not</h2>", _list(sentences)]
    if notes:
        parts += ["<h2>What does not compare</h2>", _list(notes)]
    header, rows = cells(results)
    parts += [f"<h2>{escape(results['recipe']['title'])}</h2>", html_table(header, rows)]
    if any("±" in cell for row in rows for cell in row):
        parts.append(
            "<p>± is a standard error: of perplexity over windows, of accuracy over documents, of repetition "
            "over texts.</p>"
        )
    parts += [inline_figure(caption, image) for caption, image in images.values()]
    samples = written_samples(results)
    if samples is not None:
        parts += ["<h2>Generated texts</h2>", *samples.parts()]
    parts += ["<h2>Texts</h2>", html_table(["", "text", "tokens", "SHA-256 of the token ids"], _text_cells(results))]
    parts += [f"<p>{escape(sentence)}</p>" for sentence in _overlaps(results)]
    parts += ["<h2>Machine and versions</h2>", html_table(["", ""], machine_cells(results["machine"]))]
    planned = results["planned"]
    parts += [
        "<h2>To reproduce</h2>",
        f"<pre>{escape(results['command'])}</pre>",
        f"<p>{escape(_times(results))}</p>",
        _list(planned["notes"]) if planned["notes"] else "",
        f"<p>Every raw number is in results.json beside this page. Made {escape(results['created'])}.</p>",
    ]
    return html_page(f"{results['recipe']['title']}: {results['model']['name']}", parts)


def _list(sentences: list[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>"


def _text_cells(results: dict[str, Any]) -> list[list[str]]:
    rows = [
        ["calibration", text["source"], f"{text['samples']} x {text['seq_len']}", text["sha256"]]
        for text in results["calibration"]
    ]
    trains = any(row["retrained"] for row in results["rows"])
    rows += [["training", results["texts"]["training"], "", ""]] if trains else []
    rows += [
        [f"held out, {name}", text["source"], str(text["tokens"]), text["sha256"]]
        for name, text in results["held_out"].items()
    ]
    return rows


def _overlaps(results: dict[str, Any]) -> list[str]:
    """What was looked at for common documents, where the results tell it."""
    sentences = []
    if compared := results.get("compared"):
        least, first = compared["least_characters"], compared["paragraphs"]
        sentences += [
            f"{_all_of(roles)} share no paragraph of {least} characters or more: that is checked."
            for roles in compared["together"]
        ]
        if compared["in_part"]:
            cut = _all_of(compared["in_part"])
            sentences.append(f"{cut}: only the first {first:,} such paragraphs were compared.")
        sentences += [f"{_all_of([role])}: token ids, which were not compared." for role in compared["token_ids"]]
    if shared := results["tasks_in_training"]:
        counts = ", ".join(f"{name} {count}" for name, count in shared.items())
        sentences.append(f"Documents of the tasks that share 13 words in a row with the training text: {counts}.")
    return sentences


def _all_of(roles: list[str]) -> str:
    """ "Calibration, training and ptb"."""
    *others, last = [roles[0][:1].upper() + roles[0][1:], *roles[1:]]
    return f"{', '.join(others)} and {last}" if others else last


def _times(results: dict[str, Any]) -> str:
    took = sum(results["seconds"].values())
    return (
        f"The parts took {took / 60:.1f} minutes when they were made (some perhaps for another recipe); "
        f"{results['planned']['seconds'] / 60:.1f} were planned."
    )
