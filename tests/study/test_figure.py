"""Labels that would cover each other, and the numbers of logarithmic axes."""

from __future__ import annotations

import itertools
import random

import pytest

from pyprune.study.figure import legend_below, new_figure, plain_ticks
from pyprune.study.quality_plot import spread
from tests import seeds


def test_places_that_would_touch_are_centred_where_they_want_to_be():
    assert spread([0.0, 1.0, 30.0], 10.0) == [-4.5, 5.5, 30.0]
    assert spread([30.0, 1.0, 0.0, 12.0], 10.0) == pytest.approx([30.0, 13 / 3, -17 / 3, 43 / 3])
    assert spread([], 10.0) == []


def test_places_keep_their_order_and_their_distance():
    draw = random.Random(seeds.seed())
    for count in range(1, 20):
        wanted = [draw.uniform(0, 100) for _ in range(count)]
        places = spread(wanted, 12.5)
        order = sorted(range(count), key=wanted.__getitem__)
        gaps = [places[b] - places[a] for a, b in itertools.pairwise(order)]
        assert min(gaps, default=12.5) >= 12.5 - 1e-9
        assert sum(places) == pytest.approx(sum(wanted))


@pytest.mark.parametrize(("letters", "columns"), [(3, 4), (30, 2), (50, 1)])
def test_a_legend_has_as_many_columns_as_fit(letters, columns):
    figure = new_figure(6, 4)
    panel = figure.subplots()
    for series in range(5):
        panel.plot([1, 2], [series, 3], label=f"{series}" * letters)
    legend_below(figure, *panel.get_legend_handles_labels())
    (legend,) = figure.legends
    figure.draw_without_rendering()
    extent = legend.get_window_extent()
    assert (extent.x0 >= 0, extent.x1 <= figure.bbox.width) == (True, True)
    assert legend._ncols == columns


@pytest.mark.parametrize(
    ("low", "high", "least", "most"), [(0.51, 0.56, 2, 8), (0.1, 0.9, 3, 3), (20, 1700, 6, 6), (3, 4e11, 4, 12)]
)
def test_a_logarithmic_axis_has_a_few_plain_numbers(low, high, least, most):
    figure = new_figure(4, 3)
    panel = figure.subplots()
    panel.plot([1, 2], [low, high])
    panel.set_yscale("log")
    panel.set_ylim(low, high)
    plain_ticks(panel.yaxis)
    figure.draw_without_rendering()
    ticks = [tick for tick in panel.get_yticks() if low <= tick <= high]
    assert least <= len(ticks) <= most
    labels = [panel.yaxis.get_major_formatter()(tick) for tick in ticks]
    assert len(set(labels)) == len(labels)
    assert not any("$" in label for label in labels)
    assert not list(panel.yaxis.get_minorticklocs())
