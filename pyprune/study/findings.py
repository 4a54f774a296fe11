"""What the machine shows, in sentences: each is derived from the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyprune.study.columns import MODEL_COLUMNS, Table, shown
from pyprune.study.config import CompareConfig
from pyprune.study.evaluations import evaluations_of
from pyprune.study.labels import ORIGINAL, is_checkpoint, label_of
from pyprune.study.table import engines, measured, model_columns, model_lines, ratios

FEW_RUNS = 6
"""Fewer have no 95 % interval of their median."""


def findings(results: dict[str, Any]) -> list[str]:
    """Sentences on the sample, on each pruned row's speed against the original and against its bytes, on the paper's
    statement about width pruning, and what the evaluations say. `results` as `compare` gives them."""
    lines = _pruned(results)
    sentences = [sample_sentence(results)] if results["timings"] else []
    sentences += memory_sentences(results)
    sentences += [speed_sentence(group) for group in _by_row_and_engine(results)]
    for method in methods_of(results):
        sentences.extend(paper_sentence(lines, engine, method) for engine in engines(results))
    return sentences + evaluation_sentences(results) + checkpoint_sentences(results)


SPEED_HEADER = ["row", "engine", "speed-up", "by bytes", "faster", "undecided", "slower", "against its bytes"]


def speed_cells(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of a table: what `speed_sentence` says, a line for each row and engine. The counts are of
    settings (batch and output length)."""
    rows = []
    for group in _by_row_and_engine(results):
        counts = [against_original(line) for line in group]
        tallies = [str(counts.count(name)) for name in ("faster", "undecided", "slower")]
        rows.append(
            [
                group[0]["row"], group[0]["engine"], _range(group), f"{group[0]['speedup_by_bytes']:.2f}x", *tallies,
                _bytes_tally(group) if group[0]["speedup_low"] is not None else "too few runs",
            ]
        )  # fmt: skip
    return SPEED_HEADER, rows


def other_cells(results: dict[str, Any]) -> list[list[str]]:
    """Subject and sentence of all findings that are not of speed."""
    groups = {
        "Quality": evaluation_sentences(results),
        "Checkpoints": checkpoint_sentences(results),
        "Memory": memory_sentences(results),
        "Sample": [sample_sentence(results)] if results["timings"] else [],
    }
    return [[subject, sentence] for subject, sentences in groups.items() for sentence in sentences]


def _pruned(results: dict[str, Any]) -> list[dict[str, Any]]:
    return [line for line in measured(results) if line["row"] != ORIGINAL and line["speedup"] is not None]


def _by_row_and_engine(results: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The timed lines of each pruned row under each engine, over all settings."""
    lines, names = _pruned(results), engines(results)
    keys = [(row, engine) for row in dict.fromkeys(line["row"] for line in lines) for engine in names]
    groups = ([line for line in lines if (line["row"], line["engine"]) == key] for key in keys)
    return [group for group in groups if group]


def evaluation_sentences(results: dict[str, Any]) -> list[str]:
    """What each evaluation says of each ratio."""
    sentences = []
    for ratio in ratios(results):
        rows = [row for row in results["rows"] if row["ratio"] == ratio and "oom" not in row]
        for evaluation in evaluations_of(results):
            sentences.extend(evaluation.findings(rows))
    return sentences


def memory_sentences(results: dict[str, Any]) -> list[str]:
    """Which rows did not fit into memory, and by how much."""
    sentences = []
    for row in results["rows"]:
        if "oom" in row:
            sentences.append(f"{row['name']} was not run: out of memory. {_shortage(row['oom'])}")
    whole = {row["name"] for row in results["rows"] if "oom" in row}
    for entry in results.get("oom", []):
        if entry["row"] not in whole:
            sentences.append(
                f"{entry['row']} under {entry['engine']} at batch {entry['batch']} with {entry['output_tokens']} new "
                f"tokens was not run: out of memory. {_shortage(entry)}"
            )
    return sentences


def _shortage(entry: Mapping[str, Any]) -> str:
    planned, needed, left = (entry[f"{name}_bytes"] / 2**30 for name in ("planned", "needed", "available"))
    return (
        f"It is planned at {planned:.3g} GiB, of which {needed:.3g} GiB were still to be allocated, and {left:.3g} GiB "
        "were available beside the rows before it."
    )


def checkpoint_sentences(results: dict[str, Any]) -> list[str]:
    """The quality of each checkpoint that was given, beside the original's."""
    columns = [c for c in shown(model_columns(results), Table.MODELS) if c not in MODEL_COLUMNS]
    sentences = []
    for line in model_lines(results):
        if is_checkpoint(line.row["method"]) and "oom" not in line.row:
            measures = ", ".join(f"{column.header} {column.format(column.value(line))}" for column in columns)
            sentences.append(
                f"{line.row['name']} ({line.row['source']}) has {line.row['parameters'] / 1e6:.2f} M parameters, "
                f"{line.row['removed_share']:.1%} fewer than the original: {measures}."
            )
    return sentences


def methods_of(results: dict[str, Any]) -> list[str]:
    """The width methods that were compared; older results name none."""
    return results["settings"].get("methods", list(CompareConfig.methods))


def against_original(line: Mapping[str, Any]) -> str:
    """slower, faster or undecided: a difference counts when the median paired ratio's 95 % interval excludes none."""
    return _against(line, 1.0, "slower", "undecided", "faster")


def against_bytes(line: dict[str, Any]) -> str:
    """less, more or as: the measured speed-up against the one its bytes per token predict, by the same rule."""
    return _against(line, line["speedup_by_bytes"], "less", "as", "more")


def _against(line: Mapping[str, Any], value: float, below: str, within: str, above: str) -> str:
    if line["speedup_low"] is None:
        return within
    if line["speedup_high"] < value:
        return below
    return above if line["speedup_low"] > value else within


def sample_sentence(results: dict[str, Any]) -> str:
    """How many runs each number stands on and how far they spread."""
    lines = measured(results)
    runs = min(line["runs"] for line in lines)
    widest = max(lines, key=lambda line: line["latency_max_s"] / line["latency_min_s"])
    sentence = (
        f"Each latency is the median of {_count(runs, 'interleaved run')} after "
        f"{_count(results['protocol']['warmups'], 'warm-up')}; the widest spread, slowest run over fastest, is "
        f"{widest['latency_max_s'] / widest['latency_min_s']:.2f} "
        f"({widest['row']}, {widest['engine']}, batch {widest['batch']}, {widest['output_tokens']} new tokens)."
    )
    if runs < FEW_RUNS:
        sentence += (
            f" {_count(runs, 'run')} cannot decide whether a difference is real, so none is called faster or slower "
            "here; the protocol 'paper' takes 20."
        )
    return sentence


def speed_sentence(lines: Sequence[dict[str, Any]]) -> str:
    """One row under one engine over all its settings (batch and output length)."""
    first = lines[0]
    facts = (
        f"{first['row']} under {first['engine']}: {_range(lines)} measured, {first['speedup_by_bytes']:.2f}x by bytes."
    )
    if first["speedup_low"] is None:
        return facts
    original = _tally(
        [against_original(line) for line in lines],
        faster="faster",
        undecided="undecided",
        slower="slower",
    )
    return (
        f"{facts} Of {_count(len(lines), 'setting')}, against the original: {original}; against what the bytes "
        f"predict: {_bytes_tally(lines)}."
    )


def _range(lines: Sequence[dict[str, Any]]) -> str:
    gains = [line["speedup"] for line in lines]
    return f"{min(gains):.2f}x" if len(gains) == 1 else f"{min(gains):.2f}x to {max(gains):.2f}x"


def _bytes_tally(lines: Sequence[dict[str, Any]]) -> str:
    return _tally(
        [against_bytes(line) for line in lines], more="above", **{"as": "within the spread of it"}, less="below"
    )


def paper_sentence(lines: Sequence[dict[str, Any]], engine: str, method: str) -> str:
    """Whether this machine shows what the paper saw on GPUs: width pruning that is no faster, or slower."""
    width, name = [line for line in lines if line["engine"] == engine and line["method"] == method], label_of(method)
    slower = sum(against_original(line) == "slower" for line in width)
    faster = sum(against_original(line) == "faster" for line in width)
    if not width:
        return f"No width-pruned row was timed under {engine}."
    if width[0]["speedup_low"] is None:
        gains = ", ".join(f"{line['speedup']:.2f}x at batch {line['batch']}" for line in width)
        return (
            f"The paper's GPU result that width pruning brings no speed, under {engine} on this machine: {name} ran "
            f"at {gains} of the original's speed, too few runs to decide."
        )
    if faster == len(width):
        return (
            f"Under {engine} this machine does not show the paper's GPU result that width pruning brings no speed: "
            f"{name} is faster than the original in {len(width)} of {_count(len(width), 'setting')}."
        )
    return (
        f"The paper's GPU result that width pruning brings no speed, under {engine} on this machine: of "
        f"{_count(len(width), 'setting')}, {name} is slower than the original in {slower}, faster in {faster}, "
        f"undecided in {len(width) - slower - faster}."
    )


def _tally(values: Sequence[str], **wording: str) -> str:
    return ", ".join(f"{text} in {values.count(value)}" for value, text in wording.items() if value in values)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
