"""The page of what repair and retraining win back, from the committed studies."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import log
from statistics import fmean
from typing import Any

from bench.pages.results import RESULTS, in_words, link, read, table
from bench.pages.tables import perplexity
from bench.repair_study import (
    DOCUMENTS,
    FEWER_MINUTES,
    MINUTES,
    PARTS,
    SEQ_LEN,
    WINDOWS,
    WINDOWS_OF_STEPS,
    cells,
)
from pyprune.study.evaluations.accuracy import HEADERS, mean_accuracy, metric_of

REPAIRS = "repair-smollm2.json"
SELECTION = "selection-smollm2.json"
TRAININGS = "recovery-smollm2.json"

TEXTS = {"wikitext-2": "WikiText-2", "boolq": "BoolQ"}
PRUNINGS = {
    "one-shot": "depth, one-shot", "greedy": "depth, greedy", "flap": "FLAP", "wanda-sp": "Wanda-sp"
}  # fmt: skip
TRAINED = {"plain": "LoRA alone", "repaired": "repair, then LoRA", "distilled": "repair, then LoRA with distillation"}


def page() -> str:
    """The whole page, empty before any of the studies; one that has not been run yet has no section."""
    sections = {REPAIRS: repairs, SELECTION: selection, TRAININGS: trainings}
    begun = [section for name, section in sections.items() if (RESULTS / name).exists()]
    if not begun:
        return ""
    made = "\n\n".join(section() for section in begun)
    return f"""<!-- Written by `make docs` from bench/results/. Do not edit. -->
# What repair and retraining win back

SmolLM2-135M loses a fifth of its parameters. *Won back* is the share of the lost log-perplexity, on
text that neither calibration nor training saw (`tail`'s steps were chosen on it). Below zero, the repair harms.

{made}
"""


def repairs(name: str = REPAIRS) -> str:
    """The study of repairs; a pruning whose cells of a part have not all been run is left out there."""
    results = read(name)
    entries = results["cells"]
    parts = {part: finished(part, entries) for part in PARTS}
    tables = (
        ("The perplexities:", entries, prunings),
        (
            "Won back:",
            [*parts["methods"], *parts["steps"], *parts["auto"]],
            methods,
        ),
        ("Width:", parts["width"], methods),
        ("Three draws of calibration windows:", parts["seeds"], seeds),
        (
            "Other ratios:",
            parts["ratios"],
            partial(by, "pruning", lambda cell: f"{PRUNINGS[cell['prune']]} {cell['ratio']:.0%}"),
        ),
        (
            "What `refit-all-o` is fitted on:",
            [*parts["tokens"], *parts["texts"], *parts["first"]],
            partial(by, "calibration", calibration),
        ),
        (
            "Settings of the gradient steps behind `refit-all-o`:",
            parts["tuning"],
            partial(by, "setting", setting),
        ),
        (
            f"Accuracy in percent on the paper's tasks, {DOCUMENTS} documents each:",
            parts["tasks"],
            tasks,
        ),
    )
    shown = "\n\n".join(f"{about}\n\n{draw(of)}" for about, of, draw in tables if of)
    return f"""## Repair

```bash
python -m bench.repair_study --wikitext wikitext2-test.txt
```

Closed forms see {WINDOWS} windows of {SEQ_LEN} tokens of `demo:passages`, gradient steps up to {WINDOWS_OF_STEPS:,},
unless a table says otherwise ({link(name)}). `auto` may take {MINUTES} minutes at 20 %, {FEWER_MINUTES} at other
ratios{taken(entries)}. Minutes are processor time, a thread.
{measured_on(results["machines"])}

{shown}"""


def measured_on(machines: Iterable[Mapping[str, Any]]) -> str:
    """The machines, and the products of gradient steps on each."""
    each = dict.fromkeys(f"{in_words(info)}, gradient steps in {info['products_of_steps']}" for info in machines)
    several = "" if len(each) == 1 else ". Minutes of different machines do not compare"
    return f"Measured on {'; '.join(each)}{several}."


def taken(entries: Iterable[Mapping[str, Any]]) -> str:
    """What `auto` came to, and how often."""
    auto = [entry for entry in entries if entry["cell"]["method"] == "auto" and "stages" in entry]
    counts = Counter(entry["stages"][-1]["method"] for entry in auto)
    if not counts:
        return ""
    return ", and came to " + ", ".join(f"`{method}` ({count}x)" for method, count in counts.most_common())


def finished(part: str, entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The entries of a part's cells, by prunings of which none is missing. A cell of several parts is there once."""
    present = [entry for cell in cells(part) for entry in entries if entry["cell"] == cell]
    needed, there = (Counter(cell["prune"] for cell in of) for of in (cells(part), (e["cell"] for e in present)))
    return [entry for entry in present if there[entry["cell"]["prune"]] == needed[entry["cell"]["prune"]]]


def prunings(entries: Iterable[Mapping[str, Any]]) -> str:
    """Perplexity of the original and of each pruned model, once, and of this one after `auto`."""
    rows: dict[str, list[str]] = {}
    for entry in entries:
        cell = entry["cell"]
        if "perplexity" not in entry or cell["seed"]:
            continue
        quality = entry["perplexity"]
        before = {of: [perplexity(quality[text][of]) for text in TEXTS] for of in ("original", "pruned", "repaired")}
        rows["original"] = ["original", *before["original"], *("" for _ in TEXTS)]
        label = f"{PRUNINGS[cell['prune']]} {cell['ratio']:.0%}"
        after = rows.get(label, ["" for _ in TEXTS])[-len(TEXTS) :]
        rows[label] = [label, *before["pruned"], *(before["repaired"] if cell["method"] == "auto" else after)]
    header = [f"PPL, {title}" for title in TEXTS.values()] + [f"after `auto`, {title}" for title in TEXTS.values()]
    return table(["model", *header], rows.values())


def methods(entries: Iterable[Mapping[str, Any]]) -> str:
    """A row a method: what it wins back of each pruning, and its minutes."""
    entries = list(entries)
    ways = list(dict.fromkeys(entry["cell"]["prune"] for entry in entries))
    by_method: defaultdict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for entry in entries:
        by_method[entry["cell"]["method"]][entry["cell"]["prune"]] = entry
    rows = []
    for method, of_way in by_method.items():
        shares = [back(of_way.get(way), text) for way in ways for text in TEXTS]
        minutes = fmean(entry["processor_seconds"] for entry in of_way.values()) / 60
        rows.append([f"`{method}`", *shares, f"{minutes:.1f}"])
    header = [f"{PRUNINGS[way]}: {title}" for way in ways for title in TEXTS.values()]
    empty = "\n\nEmpty: not measured." if any("" in row for row in rows) else ""
    return table(["method", *header, "minutes"], rows) + empty


def seeds(entries: Iterable[Mapping[str, Any]]) -> str:
    """The mean over seeds of what each method wins back, and its range; how many blocks the draws have in common."""
    by_method: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for entry in entries:
        by_method[entry["cell"]["method"]].append(entry)
    rows = []
    for method, of_seed in by_method.items():
        row = [f"`{method}`"]
        for text in TEXTS:
            shares = [entry["perplexity"][text]["recovered"] for entry in of_seed]
            row.append(f"{fmean(shares):.0%} ({min(shares):.0%} to {max(shares):.0%})")
        common = set.intersection(*(set(entry["removed"]["blocks"]) for entry in of_seed))
        blocks = len(of_seed[0]["removed"]["blocks"])
        rows.append([*row, f"{len(common)} of {blocks}"])
    return table(["method", *(f"{title}, mean (range)" for title in TEXTS.values()), "blocks in common"], rows)


def by(header: str, label: Callable[[Mapping[str, Any]], str], entries: Iterable[Mapping[str, Any]]) -> str:
    """A row an entry, those of one label and method once: what is won back, and the minutes."""
    rows = {}
    for entry in entries:
        key = label(entry["cell"]), entry["cell"]["method"]
        rows[key] = [
            key[0], f"`{key[1]}`", *(back(entry, text) for text in TEXTS), f"{entry['processor_seconds'] / 60:.1f}"
        ]  # fmt: skip
    if len({method for _, method in rows}) == 1:
        rows = {key: [row[0], *row[2:]] for key, row in rows.items()}
        return table([header, *TEXTS.values(), "minutes"], rows.values())
    return table([header, "method", *TEXTS.values(), "minutes"], rows.values())


def calibration(cell: Mapping[str, Any]) -> str:
    """The windows, text and treatment of first tokens that a repair is fitted with."""
    text = {"passages": "mixed passages", "lambada": "LAMBADA", "boolq": "other BoolQ passages"}[cell["text"]]
    options = {"weighting": "all tokens count alike", "first": "without first tokens"}
    return ", ".join([f"{cell['windows']:,} windows of {text}", *(options[name] for name in cell["options"])])


def setting(cell: Mapping[str, Any]) -> str:
    """What a cell of the tuning changes."""
    words = {"tail_blocks": "blocks", "rate": "rate", "steps": "steps"}
    changed = [f"{words[name]} {value:g}" for name, value in cell["options"].items()]
    return ", ".join(changed) or f"{cell['windows']:,} windows"


def back(entry: Mapping[str, Any] | None, text: str) -> str:
    """The share that was won back."""
    return "" if entry is None else f"{entry['perplexity'][text]['recovered']:.0%}"


def tasks(entries: Iterable[Mapping[str, Any]]) -> str:
    """A row a model: the mean accuracy and that of each task, in percent, by the paper's metrics."""
    titles = {"original": "original", "none": "pruned"}
    rows = []
    for entry in entries:
        method, taken = entry["cell"]["method"], entry["tasks"]
        mean = mean_accuracy(taken)
        assert mean is not None
        values = [f"{100 * taken[name][metric_of(name)]:.0f}" for name in HEADERS]
        rows.append([titles.get(method, f"`{method}`"), f"{100 * mean[0]:.1f} ± {100 * mean[1]:.1f}", *values])
    return table(["model", "mean", *HEADERS.values()], rows)


def selection(name: str = SELECTION) -> str:
    """Whether knowing of the repair helps to choose."""
    results = read(name)
    answers = results["answers"]
    rows: dict[tuple[str, str], list[str]] = {}
    for answer in answers:
        row = rows.setdefault(
            (answer["question"], answer["repair"]),
            [
                answer["question"],
                f"`{answer['repair']}`",
                " ".join(map(str, answer["other_blocks"])),
                *([""] * len(TEXTS)),
            ],
        )
        change = answer["log_perplexity"]
        row[3 + list(TEXTS).index(answer["text"])] = (
            f"{change['mean']:+.3f} ({change['lowest']:+.3f} to {change['highest']:+.3f})"
        )
    header = ["question", "repair", "other blocks", *(f"log PPL, {title}" for title in TEXTS.values())]
    return f"""## Choosing with the repair in mind

```bash
python -m bench.selection_study --wikitext wikitext2-test.txt
```

Eight blocks go; each seed draws its own windows, {results["cells"][0]["cell"]["fitted"]} of which repairs are fitted on
({link(name)}). *Other blocks*: of each seed, how many of the eight
differ. *log PPL*: of the repaired model, the first way less the second, mean and range over the seeds; below zero the
first is better.

{table(header, rows.values())}"""


def trainings(name: str = TRAININGS) -> str:
    """What an hour of training adds."""
    results = read(name)
    machines = dict.fromkeys(in_words(part["machine"]) for part in results["parts"].values())
    repair = results.get("repair", {}).get("method", "none")
    return f"""## Retraining

```bash
python -m bench.recovery --wikitext wikitext2-test.txt
```

LoRA trains on `demo:passages` for {results["settings"]["minutes"]:g} minutes ({link(name)}), with distillation towards
the original's predictions alone; the repair is `{repair}`. Measured on {"; ".join(machines)},
matrix products in {results["settings"]["precision"]}.

{recovery(results)}

{curves(results)}"""


def recovery(results: Mapping[str, Any]) -> str:
    """Perplexity as pruned, repaired and trained, what is won back, and the minutes of the last stage."""
    quality = results["perplexity"]

    def row(label: str, reached: Mapping[str, float], seconds: float | None, tokens: str = "") -> list[str]:
        cells = [label, "" if seconds is None else f"{seconds / 60:.0f}", tokens]
        for text in TEXTS:
            lost = log(quality["pruned"][text] / quality["original"][text])
            share = log(quality["pruned"][text] / reached[text]) / lost
            cells += [perplexity(reached[text]), f"{share:.0%}" if seconds is not None else ""]
        return cells

    rows = [row(label, quality[label], None) for label in ("original", "pruned")]
    if "repair" in results:
        rows.append(row("repair", results["repair"]["perplexity"], results["repair"]["seconds"]))
    for part, entry in results["parts"].items():
        training = entry["training"]
        tokens = f"{training['trained_tokens'] / 1e6:.2f} M"
        rows.append(row(TRAINED[part], entry["perplexity"], training["seconds"], tokens))
    header = ["model", "minutes", "tokens trained"]
    return table(header + [cell for title in TEXTS.values() for cell in (f"PPL, {title}", "won back")], rows)


def curves(results: Mapping[str, Any]) -> str:
    """A picture of each training."""
    return "\n\n".join(
        f"![{TRAINED[part]}: loss on WikiText-2](../bench/results/recovery-smollm2-{part}.png)"
        for part in results["parts"]
    )
