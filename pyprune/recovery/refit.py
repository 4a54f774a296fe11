"""Refit: the output projections that stay learn what went, by least squares.

With A the projection's input in the repaired model, x the stream that it adds to and t the original's stream at the
place that follows (behind what was removed),

    W, b <- argmin sum_tokens w |A W' + b - (t - x)|^2 + ridge m |W - W_old|^2,

b only where the projection has one. `refit`: the projection before each cut, and narrowed ones. `refit-all`: from the
first of these on every down projection, `refit-all-o` every output projection, block by block in order, each on the
stream of the model repaired so far, so that what one leaves the next ones can correct. Source: the normal equations of
ReplaceMe (arXiv 2505.02819) with the projection's input in place of its output, which has more freedom.
"""

from __future__ import annotations

from pyprune.recovery.fitting import Fitting
from pyprune.recovery.streams import Stage, wide
from pyprune.regression.normal_equations import Fit


def refit(stage: Stage, fitting: Fitting) -> Fit:
    """The stage's projection refitted; the stage goes on with it."""
    result = fitting.fit(
        stage,
        lambda chunk: stage.inputs[chunk],
        lambda chunk: wide(stage.target[chunk]) - wide(stage.before[chunk]),
        stage.projection,
    )
    stage.projection = result.linear
    return result


def refit_at_cut(stage: Stage, fitting: Fitting) -> Fit | None:
    return refit(stage, fitting) if stage.is_cut or stage.is_narrowed else None


def refit_down(stage: Stage, fitting: Fitting) -> Fit | None:
    return refit(stage, fitting) if stage.is_cut or stage.is_narrowed or stage.place[1] == "ffn" else None


def refit_outputs(stage: Stage, fitting: Fitting) -> Fit | None:
    return refit(stage, fitting)
