"""Where a model agrees with the paper and where not, from the numbers alone: ranks, and signs of differences."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pyprune.scoring.agreement import kendall, spearman
from pyprune.study.recipes.budget import Budget
from pyprune.study.recipes.plan import training_tokens
from pyprune.study.recipes.recipe import names_row
from pyprune.study.recipes.table import RAW_TEXT, replaces_rare_words
from pyprune.study.recipes.values import PAPER_LENGTH, counted, known_value, shown_setting

ERRORS = 2
"""Values with a standard error differ when they are so many of it apart."""
TOLERANCE = 0.01
"""Perplexities without losses by windows are called the same within 1 %."""
NAMED = 3
"""Pairs that go the other way, so many are named."""
MOSTLY, HARDLY = 0.75, 0.25
ADDED_KEYS = {"repair": None, "repair_samples": 10}
"""What a budget holds that older results lack, and how it was before."""


@dataclass
class Pairs:
    """Pairs of rows of one group, by whether our difference has the sign of the paper's."""

    agree: int = 0
    undecided: int = 0
    against: list[tuple[str, str]] = field(default_factory=list)

    @property
    def decided(self) -> int:
        return self.agree + len(self.against)

    @property
    def verdict(self) -> str:
        """In words."""
        if not self.decided:
            return "is undecided"
        share = self.agree / self.decided
        if share == 1:
            return "agrees with the paper"
        if share >= MOSTLY:
            return "mostly agrees with the paper"
        return "agrees in part" if share > HARDLY else "disagrees with the paper"


@dataclass(frozen=True)
class Outcome:
    """Comparisons of two rows that a claim of the paper is about: how many agree, contradict, or decide nothing."""

    agree: int
    contradict: int
    undecided: int

    @property
    def compared(self) -> int:
        return self.agree + self.contradict + self.undecided

    @property
    def verdict(self) -> str:
        """In words."""
        if not self.compared:
            return "not tested here"
        if self.agree == self.compared:
            return "it holds here"
        if not self.agree + self.contradict:
            return "undecided here"
        if 2 * self.undecided > self.compared:
            return "mostly undecided here"
        return "it holds here in part" if self.agree else "it does not hold here"


def agreement(results: dict[str, Any]) -> list[str]:
    """Sentences: of each column with numbers of the paper, then of each claim, then what does not compare."""
    sentences = [sentence for column in results["recipe"]["columns"] if (sentence := _column(results, column))]
    sentences += [_claim(results, claim) for claim in results["recipe"]["claims"]]
    return sentences


def compared_pairs(rows: Sequence[dict[str, Any]], value: str) -> Pairs:
    """All pairs of rows of one group that both have our number and the paper's."""
    pairs = Pairs()
    both = [row for row in rows if _both(row, value)]
    for a, b in itertools.combinations(both, 2):
        if a["group"] != b["group"]:
            continue
        theirs = a["paper"][value] - b["paper"][value]
        if theirs == 0:
            continue
        sign = difference(a, b, value)
        if sign == 0:
            pairs.undecided += 1
        elif sign == (1 if theirs > 0 else -1):
            pairs.agree += 1
        else:
            low, high = (a, b) if sign < 0 else (b, a)
            pairs.against.append((low["name"], high["name"]))
    return pairs


def difference(a: dict[str, Any], b: dict[str, Any], value: str, factor: float = 1.0) -> int:
    """The sign of a's value less `factor` times b's, 0 where that is left open: by two standard errors (of perplexities
    those of the paired difference over the same windows, in their logarithms), or of speeds by intervals of the medians
    that overlap. A perplexity that is not finite is above all others."""
    left, right = a["values"].get(value), b["values"].get(value)
    if left is None or right is None:
        return (left is None) - (right is None) if value.startswith("ppl") else 0
    if known_value(value).measure == "speed":
        return _apart(a["intervals"].get(value), b["intervals"].get(value), factor)
    losses = [row["losses"].get(value) for row in (a, b)]
    if None not in losses:
        gap, bound = _paired(losses[0], losses[1])
        gap -= math.log(factor)
    elif value.startswith("ppl"):  # of an iterative pruning no window's loss is kept
        gap, bound = math.log(left / (factor * right)), TOLERANCE
    else:
        errors = (a["errors"].get(value) or 0.0, factor * (b["errors"].get(value) or 0.0))
        gap, bound = left - factor * right, ERRORS * math.hypot(*errors)
    return 0 if abs(gap) <= bound else 1 if gap > 0 else -1


def _paired(a: dict[str, Any], b: dict[str, Any]) -> tuple[float, float]:
    """The difference of two log-perplexities on the same windows, and two standard errors of it."""
    gaps = [x - y for x, y in zip(a["nll"], b["nll"], strict=True)]
    tokens = a["tokens"]
    total, count = sum(tokens), len(gaps)
    mean = sum(gaps) / total
    if count < 2:
        return mean, math.inf
    squares = sum((gap - mean * n) ** 2 for gap, n in zip(gaps, tokens, strict=True))
    return mean, ERRORS * math.sqrt(count / (count - 1) * squares) / total


def _apart(a: Any, b: Any, factor: float) -> int:
    """The sign of the difference of two intervals; 0 where they overlap, or where there were too few runs for one."""
    if a is None or b is None:
        return 0
    return 1 if a[0] > factor * b[1] else -1 if a[1] < factor * b[0] else 0


def _both(row: dict[str, Any], value: str) -> bool:
    return isinstance(row["paper"].get(value), int | float) and row["values"].get(value) is not None


def _column(results: dict[str, Any], column: dict[str, Any]) -> str | None:
    value, header = column["value"], column["header"]
    rows = [row for row in results["rows"] if _both(row, value)]
    pruned = [row for row in rows if row["method"] != "original"]
    if len(rows) < 2 or known_value(value).better is None:
        return None
    pairs = compared_pairs(rows, value)
    text = f"{header}: "
    if pairs.decided:
        text += f"this model {pairs.verdict} on which row is better within a group: "
    if pairs.agree or pairs.against or pairs.undecided:
        total = pairs.decided + pairs.undecided
        text += (
            f"of {total} pairs, {pairs.agree} differ as in the paper, {len(pairs.against)} the other way, and "
            f"{pairs.undecided} too little to tell."
        )
    else:
        text += "no two rows of a group have our number and the paper's."
    if pairs.against:
        listed = "; ".join(f"{low} is below {high}" for low, high in pairs.against[:NAMED])
        text += f" Unlike in the paper, {listed}" + ("; and others." if len(pairs.against) > NAMED else ".")
    if len(pruned) > 2:
        ours, theirs = [row["values"][value] for row in pruned], [row["paper"][value] for row in pruned]
        rho, tau = spearman(ours, theirs), kendall(ours, theirs)
        if rho is not None and tau is not None:
            text += f" Over all {len(pruned)} pruned rows the rank correlation is {rho:.2f} (Spearman), "
            text += f"{tau:.2f} (Kendall)."
    missing = sum(isinstance(row["paper"].get(value), int | float) and not _both(row, value) for row in results["rows"])
    if missing:
        have = "has" if missing == 1 else "have"
        text += f" {counted(missing, 'row')} of the paper {have} no finite number in this run."
    return text


def claim_outcome(results: dict[str, Any], claim: dict[str, Any]) -> Outcome:
    """How many comparisons of rows bear a claim of the paper out, over all pairs of rows that it names."""
    value = claim["value"]
    signs = []
    for row in results["rows"]:
        if not names_row(claim["rows"], row["name"]):
            continue
        for other in results["rows"]:
            same = other["group"] == row["group"] or other["method"] == "original"
            if other is row or not same or not names_row(claim["than"], other["name"]) or value not in row["values"]:
                continue
            if value in other["values"]:
                signs.append(difference(row, other, value, claim["factor"]))
    sign = {"lower": -1, "higher": 1}[claim["relation"]]
    return Outcome(signs.count(sign), signs.count(-sign), signs.count(0))


def _claim(results: dict[str, Any], claim: dict[str, Any]) -> str:
    """How often what the paper says holds."""
    outcome = claim_outcome(results, claim)
    if not outcome.compared:
        return f"The paper: {claim['text']} Nothing measured here tests this."
    verdict = f"{outcome.verdict[0].upper()}{outcome.verdict[1:]}"
    compared = f"{counted(outcome.compared, 'comparison')} of {_named(results, claim['value'])}"
    if outcome.compared in (outcome.agree, outcome.contradict):
        return f"The paper: {claim['text']} {verdict}, in {compared}."
    counts = f"{outcome.agree} for it, {outcome.contradict} against it, {outcome.undecided} undecided"
    return f"The paper: {claim['text']} {verdict}: of {compared}, {counts}."


def _named(results: dict[str, Any], value: str) -> str:
    """What a value is called in sentences: of the perplexity without a text's name, with that of the first."""
    first = next(iter(results["held_out"]), None)
    return known_value(f"ppl:{first}" if value == "ppl" and first is not None else value).header


def incomparable(results: dict[str, Any]) -> list[str]:
    """What keeps the numbers themselves, and some of their order, from being compared with the paper's."""
    recipe = results["recipe"]
    if not recipe["paper_setup"]:
        return []
    budget, paper = results["budget"], results["paper_budget"]
    model = results["model"]
    measures = recipe["measures"]
    sentences = [
        f"The paper's results are for {recipe['paper_setup']}; these are for {model['name']} with "
        f"{model['parameters'] / 1e6:.1f} M parameters. Compare order and direction, not the numbers themselves."
    ]
    texts = results["texts"]
    sentences.append(
        f"Calibration uses {texts['calibration']}, {budget['samples']} windows of {budget['seq_len']} tokens unless a "
        "row says otherwise (the paper: BookCorpus, 10 windows of 128)."
    )
    if any(row["retrained"] for row in results["rows"]):
        sentences.append(_retraining(results, training_tokens(_budget(paper))))
    elif any(model_row["retrain"] for model_row in recipe["models"]):
        sentences.append("The paper retrained its models and this run did not; that alone may change ranks.")
    if measures["perplexity"]:
        names = ", ".join(text["source"] for text in results["held_out"].values())
        sentences.append(
            f"Perplexity is measured on {names}, in windows of {budget['window']} tokens, with this model's tokenizer."
        )
        if replaces_rare_words(results, f"ppl:{RAW_TEXT}"):
            sentences.append(
                f"The text given for {RAW_TEXT} has unk for rare words, which changes perplexity; published results "
                "use the raw text."
            )
        values = {column["value"] for column in recipe["columns"]}
        missing = [name for name in results["left_out"] if f"ppl:{name}" in values]
        if missing:
            sentences.append(f"No text was named for {', '.join(missing)}: the table has no column of it.")
    if measures["tasks"] and budget["limit"]:
        sentences.append(f"Accuracy is measured on the first {budget['limit']} documents of each task.")
    if measures["speed"] is not None:
        sentences.append(_measured_speed(results))
    return sentences + list(recipe["incomparable"])


def _retraining(results: dict[str, Any], full: int) -> str:
    """What rows were trained on, and how much; of iterative rows apart. full: the tokens of the paper's budget."""
    budget = results["budget"]
    once, of_rounds = (
        [row for row in results["rows"] if row["retrained"] and ("trainings" in (row["made"] or {})) == iterative]
        for iterative in (False, True)
    )
    amounts = [f"at most {training_tokens(_budget(budget)):,} tokens a row"] if once else []
    if of_rounds:
        round_tokens = budget["round_steps"] * budget["batch"] * budget["cutoff"]
        rounds = max(row["made"]["trainings"] for row in of_rounds)
        amounts.append(
            f"an iterative row at most {round_tokens:,} tokens after every removal, so up to {rounds * round_tokens:,}"
        )
    precision = "" if budget["precision"] is None else f" in {budget['precision']}"
    return (
        f"Retraining used {results['texts']['training']}, {', '.join(amounts)}, at learning rate "
        f"{budget['learning_rate']:g}{precision}; the paper used instructions (refined Alpaca) for 2 epochs, up to "
        f"{full:,} tokens."
    )


def _measured_speed(results: dict[str, Any]) -> str:
    """Where and how the times of the table were taken, and how the paper took its own."""
    machine, budget, first = results["machine"], results["budget"], results["timings"][0]
    gpus = machine["gpus"] if results.get("device") != "cpu" else []
    where = ", ".join(gpu["name"] for gpu in gpus) or machine["cpu"]
    batch, length = shown_setting(first)
    return (
        f"Speed in the table is measured on {where} in {budget['dtype']}: {first['protocol']['input_tokens']} input "
        f"and {length} new tokens, batch {batch}, {counted(budget['runs'], 'run')} after "
        f"{counted(budget['warmups'], 'warm-up')}. The paper timed Hugging Face transformers (HF) on GPUs, in Tables 2 "
        f"and 4 with 12 input and {PAPER_LENGTH} new tokens at batch 1."
    )


def _budget(data: dict[str, Any]) -> Budget:
    lists = {name: tuple(data[name]) for name in ("batches", "output_tokens")}
    return Budget(**{**ADDED_KEYS, **data, **lists})
