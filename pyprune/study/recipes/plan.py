"""What a recipe will do, and about how long each part takes on this machine."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from pyprune.evaluation.perplexity import window_losses
from pyprune.evaluation.tasks import Tasks
from pyprune.models.decoder import Decoder
from pyprune.recovery.blockwise import BLOCKWISE_STEPS
from pyprune.recovery.fitting import enough_samples
from pyprune.recovery.methods import chain_of
from pyprune.recovery.tail import TAIL_BLOCKS, TAIL_STEPS
from pyprune.scoring.calibration import random_windows
from pyprune.study.recipes.budget import Budget
from pyprune.study.recipes.recipe import DEPTH, ITERATIVE, Prune, Recipe
from pyprune.study.recipes.values import counted

PROBE = (4, 128)
"""Windows and tokens of the forward pass that is timed."""

BACKWARD = 4.0
"""A training token costs about so many forward ones."""
SCORED = 0.6
"""Scoring a block costs about so much of a forward pass, for what stands before it is shared."""
FITTED, PASSES = 4.0, 2.0
"""A closed form costs about so much of a forward pass over its windows; gradient steps need the streams of two models
besides."""
OURS_STEP, HF_STEP = 8.0, 30.0
"""A decode step at batch 1 costs about so many forward tokens."""
DOCUMENT_TOKENS = 120
"""Tokens of a task's document with all its choices, about."""
ALL_DOCUMENTS = 3000
ALPACA = 50_000
WHOLE_TEXT = 300_000


@dataclass(frozen=True)
class Cell:
    """A part of the work and its planned seconds."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Plan:
    """All parts in order; `notes`: what the budget caps."""

    recipe: str
    model: str
    budget: str
    cells: tuple[Cell, ...]
    notes: tuple[str, ...]

    @property
    def seconds(self) -> float:
        return sum(cell.seconds for cell in self.cells)

    def to_json(self) -> dict[str, Any]:
        return {"cells": [asdict(cell) for cell in self.cells], "seconds": self.seconds, "notes": list(self.notes)}


def forward_rate(decoder: Decoder) -> float:
    """Tokens a second of a forward pass with its loss, measured."""
    ids = random_windows(decoder.vocab_size, PROBE[0], min(PROBE[1], decoder.max_positions), 0).input_ids
    window_losses(decoder, ids[:1], distributed=False)
    began = time.perf_counter()
    window_losses(decoder, ids, distributed=False)
    return ids.numel() / max(1e-6, time.perf_counter() - began)


def plan(
    recipe: Recipe, budget: Budget, decoder: Decoder, rate: float, tasks: Tasks | None, held_out: int | None = None
) -> Plan:
    """The parts of a recipe on a model that reads `rate` tokens a second; what is finished already is counted too.
    held_out: texts that are named (None: all of the budget's)."""
    text_count = len(budget.held_out) if held_out is None else held_out
    cells: list[Cell] = []
    seen: set[Any] = set()
    blocks, measures = len(decoder.blocks), recipe.measures

    def add(name: str, tokens: float, key: Any = None) -> None:
        if key is None or key not in seen:
            cells.append(Cell(name, tokens / rate))
        seen.add(key)

    for criterion in measures.scores:
        prune = Prune(DEPTH, "1", criterion)
        add(f"score, {criterion}", _choosing(prune, blocks, budget), _key(prune))
    rounds = [int(m.prune.amount) for m in recipe.models if m.prune is not None and m.prune.search == ITERATIVE]
    if rounds:
        one = (
            _choosing(Prune(DEPTH, "1"), blocks, budget)
            + budget.round_steps * budget.batch * budget.cutoff * BACKWARD
            + 2 * (budget.tokens or WHOLE_TEXT)
        )
        add(f"iterate, {max(rounds)} rounds", max(rounds) * one)
    for model in recipe.models:
        if model.prune is not None and model.prune.search != ITERATIVE:
            add(f"choose, {model.name}", _choosing(model.prune, blocks, budget), _key(model.prune))
    share = {model.name: 1.0 if model.prune is None else 0.75 for model in recipe.models}
    for model in recipe.models:
        if model.prune is not None and model.prune.search == ITERATIVE:
            continue
        if model.repair is not None:
            cost = _repairing(model.repair, decoder, budget)
            add(f"repair, {model.name}", cost, ("repair", model.prune, model.repair))
        if model.retrain and budget.steps != 0:
            add(
                f"retrain, {model.name}",
                training_tokens(budget) * BACKWARD * share[model.name] * (1 + model.distill / 3),
            )
        quality = 0.0
        if measures.perplexity:
            quality += (budget.tokens or WHOLE_TEXT) * text_count
        if tasks is not None:
            quality += len(tasks.names) * (budget.limit or ALL_DOCUMENTS) * DOCUMENT_TOKENS
        if measures.samples:
            quality += 3 * budget.draws * budget.new_tokens * OURS_STEP
        if quality:
            add(f"measure, {model.name}", quality * share[model.name])
    if measures.speed is not None:
        speed = measures.speed
        sizes = {
            (_key(m.prune), m.prune.amount) if m.prune and m.prune.method != DEPTH else m.group for m in recipe.models
        }
        steps = sum(speed.output_tokens or budget.output_tokens) * len(speed.input_tokens)
        batches = speed.batches or budget.batches
        once = sum(steps * (OURS_STEP * (1 + batch / 8) + HF_STEP * (1 + batch / 16)) for batch in batches)
        add("time all rows", len(sizes) * (budget.warmups + budget.runs) * once)
    return Plan(recipe.name, decoder.name, budget.name, tuple(cells), tuple(_notes(recipe, budget)))


def training_tokens(budget: Budget) -> int:
    """Tokens that a retraining sees, at most."""
    samples = ALPACA * budget.epochs if budget.steps is None else budget.steps * budget.batch
    return samples * budget.cutoff


def _repairing(method: str, decoder: Decoder, budget: Budget) -> float:
    """What a repair costs, in forward tokens."""
    of_blocks = [block.parameters() for block in decoder.sizes().blocks]
    head = decoder.head.weight.numel()
    of_tail = (sum(of_blocks[-TAIL_BLOCKS:]) + head) / (sum(of_blocks) + head)
    steps = {"blockwise": (BLOCKWISE_STEPS, 1.0), "tail": (TAIL_STEPS, of_tail)}
    chain = ("refit-all-o", "tail") if method == "auto" else chain_of(method)
    samples = budget.repair_samples
    if set(chain) & set(steps):
        samples = min(samples, enough_samples(decoder, budget.seq_len))
    tokens = 0.0
    for name in chain:
        if name in steps:
            of_method, share = steps[name]
            seen = of_method.count * of_method.batch(budget.seq_len)
            windows = of_method.windows(budget.seq_len, budget.repair_samples)
            tokens += (BACKWARD * share * seen + PASSES * windows) * budget.seq_len
        else:
            tokens += FITTED * samples * budget.seq_len
    return tokens


def _choosing(prune: Prune, blocks: int, budget: Budget) -> float:
    """Forward tokens that choosing what goes costs."""
    tokens = (prune.samples or budget.samples) * budget.seq_len
    if prune.method != DEPTH:
        return tokens * (BACKWARD if prune.method in ("llm-pruner", "head-gate") else 2.0) + 4000
    units = blocks * (2 if prune.unit == "mha+ffn" else 1)
    if prune.search == "greedy":
        return tokens * units * units * 0.1
    if prune.choice.criterion == "ppl":
        return tokens * (units + 1) * SCORED
    return tokens * BACKWARD if prune.choice.criterion != "magnitude" else 1000.0


def _key(prune: Prune | None) -> Any:
    """What prunings that are chosen together have in common."""
    if prune is None:
        return None
    if prune.method != DEPTH:
        return prune
    amount = "" if prune.search == "one-shot" else prune.amount
    return (prune.criterion, prune.unit, prune.protect, prune.search, prune.samples, amount)


def _notes(recipe: Recipe, budget: Budget) -> list[str]:
    paper = recipe.budgets["paper"]
    notes = []
    if any(model.retrain for model in recipe.models):
        full = training_tokens(paper)
        if rounds := [m for m in recipe.models if m.prune is not None and m.prune.search == ITERATIVE]:
            notes.append(
                f"Iterative pruning trains {counted(budget.round_steps, 'step')} after each removal "
                f"({counted(len(rounds), 'row')})."
            )
        if budget.steps == 0:
            notes.append("This budget retrains nothing.")
        elif budget.steps is not None and training_tokens(budget) < full:
            notes.append(
                f"Retraining is capped at {counted(budget.steps, 'step')} of {budget.batch} sequences of at most "
                f"{budget.cutoff} tokens: {training_tokens(budget):,} tokens, where the paper's budget has up to "
                f"{full:,}."
            )
    if recipe.measures.tasks and budget.limit is not None:
        notes.append(f"Tasks are limited to their first {budget.limit} documents.")
    if recipe.measures.perplexity and budget.tokens is not None:
        notes.append(f"Perplexity uses at most {budget.tokens:,} tokens of each text.")
    if recipe.measures.speed is not None and budget.runs < paper.runs:
        took = f"{counted(budget.runs, 'run')} after {counted(budget.warmups, 'warm-up')}"
        notes.append(f"Times are from {took}; the paper has 20 after 10.")
    return notes
