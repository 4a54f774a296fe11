"""What a comparison says, in at most three sentences: quality at equal size, speed at equal size, and the engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyprune.study.columns import Table, perplexity, shown
from pyprune.study.evaluations.perplexity import about_the_same
from pyprune.study.findings import FEW_RUNS, against_original
from pyprune.study.labels import DEPTH, ORIGINAL, is_checkpoint
from pyprune.study.table import engines, measured, model_columns, model_lines, ratios

Line = Mapping[str, Any]


def verdict(results: dict[str, Any]) -> list[str]:
    """The sentences that the numbers allow, of up to three; `results` as `compare` gives them."""
    sentences = (quality_sentence(results), speed_sentence(results), engine_sentence(results))
    return [sentence for sentence in sentences if sentence] or ["Nothing was timed, and no quality was taken."]


def quality_sentence(results: dict[str, Any]) -> str:
    """The best depth and width row of each ratio by perplexity, and their mean accuracy where it was taken."""
    lines = model_lines(results)
    rows = [line.row for line in lines if line.row.get("ppl") is not None]
    original = next((row for row in rows if row["method"] == ORIGINAL), None)
    accuracy = [c for c in shown(model_columns(results), Table.MODELS) if c.name == "accuracy"]
    means = {line.row["name"]: column.format(column.value(line)) for column in accuracy for line in lines}

    def quality(row: Line) -> str:
        mean = f", accuracy {means[row['name']]} %" if means.get(row["name"]) else ""
        return f"{perplexity(row['ppl'])} ({row['name']}{mean})"

    parts, spread_unknown = [], False
    for ratio in ratios(results):
        kinds = zip(("depth", "width"), _kinds([row for row in rows if row["ratio"] == ratio]), strict=True)
        best = [(min(members, key=lambda row: row["ppl"]), kind) for kind, members in kinds if members]
        best.sort(key=lambda pair: pair[0]["ppl"])
        verb = "the perplexity is"
        if len(best) > 1:
            same = about_the_same(best[0][0], best[1][0])
            spread_unknown |= same is None
            verb = (
                "depth and width have about the same perplexity," if same else f"{best[0][1]} has the lower perplexity,"
            )
        if best:
            parts.append(
                f"with {ratio} of the parameters removed, {verb} {' against '.join(quality(r) for r, _ in best)}"
            )
    if not parts:
        return ""
    whole = "" if original is None else f"; the original's is {perplexity(original['ppl'])}"
    return _sentence("; ".join(parts) + whole + ("; no spread of these is known" if spread_unknown else ""))


def speed_sentence(results: dict[str, Any]) -> str:
    """The fastest depth and width row of each ratio over the original, at the smallest batch under the last engine."""
    lines = [line for line in measured(results) if line["speedup"] is not None]
    if not lines:
        return ""
    engine = [name for name in engines(results) if any(line["engine"] == name for line in lines)][-1]
    batch = min(line["batch"] for line in lines if line["engine"] == engine)
    length = min(line["output_tokens"] for line in lines if (line["engine"], line["batch"]) == (engine, batch))
    here = [line for line in lines if (line["engine"], line["batch"], line["output_tokens"]) == (engine, batch, length)]
    fastest = []
    for ratio in ratios(results):
        for kind in _kinds([line for line in here if line["ratio"] == ratio]):
            fastest += [max(kind, key=lambda line: line["speedup"])] if kind else []
    if not fastest:
        return ""
    few = min(line["runs"] for line in here) < FEW_RUNS
    decided = ["" if few else f" ({against_original(line)})" for line in fastest]
    # Names have commas of their own, and so stand behind the number.
    parts = [f"{line['speedup']:.2f}x for {line['row']}{word}" for line, word in zip(fastest, decided, strict=True)]
    doubt = _too_few(here) if few else ""
    return f"Speed against the original, under {engine} at batch {batch}: {', '.join(parts)}{doubt}."


def engine_sentence(results: dict[str, Any]) -> str:
    """What pyprune takes for the original beside Hugging Face, at the smallest and the largest batch."""
    lines = [line for line in measured(results) if line["row"] == ORIGINAL and line["pyprune_vs_hf"] is not None]
    if not lines:
        return ""
    shortest = min(line["output_tokens"] for line in lines)
    at_batch = {line["batch"]: line for line in lines if line["output_tokens"] == shortest}
    ends = [at_batch[batch] for batch in sorted({min(at_batch), max(at_batch)})]
    few = any(line["pyprune_vs_hf_low"] is None for line in ends)
    parts = [f"{line['pyprune_vs_hf']:.2f}x{'' if few else _interval(line)} at batch {line['batch']}" for line in ends]
    given = "" if few else ", with 95 % intervals"
    doubt = _too_few(ends) if few else ""
    return f"pyprune against Hugging Face transformers on the original{given}: {', '.join(parts)}{doubt}."


def _interval(line: Line) -> str:
    return f" ({line['pyprune_vs_hf_low']:.2f} to {line['pyprune_vs_hf_high']:.2f})"


def _too_few(lines: Sequence[Line]) -> str:
    """What to say of lines of which one has fewer runs than an interval needs."""
    runs = min(line["runs"] for line in lines)
    return f"; {runs} {'run is' if runs == 1 else 'runs are'} too few to call a difference real"


def _kinds(rows: Sequence[Line]) -> tuple[list[Line], list[Line]]:
    """Those pruned in depth, and those pruned in width."""
    depth = [row for row in rows if row["method"].split(" ")[0] == DEPTH]
    width = [row for row in rows if row not in depth and row["method"] != ORIGINAL and not is_checkpoint(row["method"])]
    return depth, width


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
