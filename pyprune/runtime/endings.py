"""How likely endings are behind their contexts, each context read once for all its endings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyprune import ops
from pyprune.models.decoder import Decoder
from pyprune.runtime.shared_context import Family, Pack, families, packs, shared_states
from pyprune.runtime.skip import SkipPlan

TOKENS = {"cpu": 2048, "cuda": 16384}
"""Tokens that are read at once, by the kind of device."""
LOGIT_ROWS = 64
"""Rows of logits that exist at a time, where the likeliest token is looked for."""
SURELY_LIKELIEST = 0.69
"""Below this loss, in nats, a token has more than half of the probability (ln 2 is 0.6931)."""


@dataclass(frozen=True)
class Ending:
    """Tokens to be scored, `targets`, not empty; `read`: what the model reads, its last len(targets) tokens predict
    them."""

    read: list[int]
    targets: list[int]


@dataclass(frozen=True)
class Answer:
    """Of one ending: the sum of its tokens' log-probabilities, and whether each is the likeliest where it stands."""

    log_likelihood: float
    is_greedy: bool


def ending(context: Sequence[int], tokens: Sequence[int], window: int) -> Ending:
    """`tokens` behind `context`, both not empty, of which at most `window` tokens are read: the context loses its first
    ones, as lm-eval cuts it."""
    return Ending([*context, *tokens][-(window + 1) : -1], list(tokens))


def answers(
    decoder: Decoder, endings: Sequence[Ending], plan: SkipPlan, most_tokens: int
) -> Iterator[tuple[int, Answer]]:
    """The endings' positions and answers, as they come; long contexts first.

    most_tokens: read at once, or one group of sequences that begin alike. Only the endings' tokens meet the head, whose
    logits are summed tile by tile.
    """
    limit = decoder.rope.limit
    alone = [i for i, e in enumerate(endings) if limit is not None and len(e.read) > limit]  # a rotation of its own
    together = sorted(set(range(len(endings))) - set(alone))
    groups = [[Family(endings[i].read, [[]], [i])] for i in alone]
    shared = families([endings[i].read for i in together], most_tokens)
    groups += packs([Family(f.prefix, f.branches, [together[i] for i in f.members]) for f in shared], most_tokens)
    for group in groups:
        yield from _answers(decoder, endings, plan, group)


def _answers(
    decoder: Decoder, endings: Sequence[Ending], plan: SkipPlan, group: Sequence[Family]
) -> Iterator[tuple[int, Answer]]:
    pack = Pack(group, decoder.device)
    states = shared_states(decoder, pack, plan)
    members: list[int] = []
    rows: list[int] = []
    targets: list[int] = []
    for i, family in enumerate(group):
        for branch, member in enumerate(family.members):
            read, scored = len(endings[member].read), endings[member].targets
            members.append(member)
            rows += [pack.row(i, branch, position) for position in range(read - len(scored), read)]
            targets += scored
    h = states[torch.tensor(rows, device=states.device)]
    target_ids = torch.tensor(targets, device=states.device)
    with torch.inference_mode():
        losses = ops.linear_cross_entropy(
            h, decoder.head.weight, target_ids, decoder.norm, decoder.eps, decoder.head.bias
        ).cpu()
    lengths = [len(endings[member].targets) for member in members]
    greedy = _greedy(decoder, h, target_ids, losses, lengths)
    for member, loss, is_greedy in zip(members, losses.to(torch.float64).split(lengths), greedy, strict=True):
        yield member, Answer(-float(loss.sum()), is_greedy)


def _greedy(decoder: Decoder, h: Tensor, targets: Tensor, losses: Tensor, lengths: list[int]) -> list[bool]:
    """Whether each ending's tokens are all the likeliest, from h `[R, hidden]`, targets and losses `[R]`.

    Most endings have one token that is not, so that the least likely one of each is looked at first.
    """
    starts = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    unsure = [row for row, loss in enumerate(losses.tolist()) if not loss < SURELY_LIKELIEST]
    open_rows: list[list[int]] = [[] for _ in lengths]
    places = torch.bucketize(torch.tensor(unsure, dtype=torch.int64), torch.tensor(starts[1:]), right=True).tolist()
    for row, place in zip(unsure, places, strict=True):
        open_rows[place].append(row)
    greedy = [not any(math.isnan(loss) for loss in losses[a:b].tolist()) for a, b in itertools.pairwise(starts)]
    worst = {max(rows, key=lambda row: float(losses[row])): place for place, rows in enumerate(open_rows) if rows}
    for row, likeliest in _are_likeliest(decoder, h, targets, list(worst)):
        greedy[worst[row]] &= likeliest
    undecided = {
        row: place for place, rows in enumerate(open_rows) if greedy[place] for row in rows if row not in worst
    }
    for row, likeliest in _are_likeliest(decoder, h, targets, list(undecided)):
        greedy[undecided[row]] &= likeliest
    return greedy


@torch.inference_mode()
def _are_likeliest(decoder: Decoder, h: Tensor, targets: Tensor, rows: list[int]) -> Iterator[tuple[int, bool]]:
    """Of some rows of h, whether the target is the likeliest token."""
    for start in range(0, len(rows), LOGIT_ROWS):
        part = rows[start : start + LOGIT_ROWS]
        chosen = torch.tensor(part, device=h.device)
        logits = ops.norm_head(h[chosen], decoder.norm, decoder.eps, decoder.head.weight, decoder.head.bias)
        yield from zip(part, (logits.argmax(1) == targets[chosen]).tolist(), strict=True)
