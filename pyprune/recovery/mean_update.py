"""Mean update ("A deeper look at depth pruning of LLMs", arXiv 2407.16286).

At each cut the stream gets the mean of what is missing,

    b = mean_t (x_post - x_pre),

as a bias of the projection before the cut. x_post is the original's stream behind what was removed, x_pre the repaired
model's, which at the first cut is the original's too. Where a projection was narrowed, x_post - x_pre is what its lost
inputs brought. The mean is plain: every token counts once.
"""

from __future__ import annotations

import torch

from pyprune.recovery.fitting import Fitting
from pyprune.recovery.streams import Stage


def mean_update(stage: Stage, fitting: Fitting) -> torch.Tensor | None:
    """What the stage's projection gets as a bias, float64 `[hidden]`; None where nothing went."""
    if not (stage.is_cut or stage.is_narrowed):
        return None
    total = torch.zeros(stage.before.shape[-1], dtype=torch.float64, device=stage.before.device)
    count = torch.zeros((), dtype=torch.float64, device=stage.before.device)
    for chunk in stage.chunks:
        fitted = fitting.fitted(chunk, total.device)
        total += (stage.target[chunk].double() - stage.outputs(chunk).double())[fitted].sum((0, 1))
        count += fitted.sum() * stage.target.shape[1]
    fitting.group.all_reduce(total, count)
    return total / count
