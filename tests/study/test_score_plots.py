"""Figures of scores: what is drawn, marked and scaled, read back from the drawing itself."""

from __future__ import annotations

import math
import struct
from typing import Any

import pytest
from matplotlib.colors import to_hex

from pyprune.errors import InputError
from pyprune.scoring import Scores, contrast
from pyprune.study import contrast_plot, score_plots
from pyprune.study.contrast_plot import side_by_side
from pyprune.study.score_axes import DROPPED, KEPT, PROTECTED
from pyprune.study.score_plots import bars, chosen, chosen_bars, heat_map

BLOCKS = Scores(
    "model", "ppl", "block", 2.0, [("block", i) for i in range(6)], [900.0, 3.0, 2.5, 4.0, 2.2, 50.0],
    {"source": "novels.txt", "samples": 10, "seq_len": 128},
)  # fmt: skip
OTHER = Scores("model", "ppl", "block", 4.0, BLOCKS.units, [90.0, 4.4, 8.0, 5.0, 6.0, 7.0], {"source": "mail.txt"})
HALVES = Scores(
    "model", "change", "mha+ffn", None, [(kind, i) for i in range(3) for kind in ("mha", "ffn")],
    [-1.0, 0.5, 0.25, -0.5, 2.0, 3.0],
)  # fmt: skip


@pytest.fixture
def drawn(monkeypatch) -> list[Any]:
    """The figures as they were when they became PNG."""
    figures: list[Any] = []
    png = score_plots.png
    for room in (score_plots, contrast_plot):
        monkeypatch.setattr(room, "png", lambda figure: figures.append(figure) or png(figure))
    return figures


def colours(panel: Any) -> list[str]:
    return [to_hex(bar.get_facecolor()).upper() for bar in panel.patches]


def size(image: bytes) -> tuple[int, int]:
    assert image.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", image[16:24])


def test_a_bar_reaches_each_score_and_the_line_the_baseline(drawn):
    bars(BLOCKS)
    panel = drawn[0].axes[0]
    assert [bar.get_y() + bar.get_height() for bar in panel.patches] == pytest.approx(BLOCKS.values)
    assert panel.lines[0].get_ydata() == pytest.approx([2.0, 2.0])
    assert [bar.get_x() + bar.get_width() / 2 for bar in panel.patches] == pytest.approx(range(6))


def test_what_goes_and_what_is_protected_is_coloured(drawn):
    chosen_bars(BLOCKS, count=2, protect="first=1,4")
    assert colours(drawn[0].axes[0]) == [PROTECTED, DROPPED, DROPPED, KEPT, PROTECTED, KEPT]
    legend = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert legend == ["goes", "protected", "stays", "unpruned model: 2"]


def test_units_that_the_scores_protect_are_marked_too(drawn):
    kept = Scores("m", "ppl", "block", None, BLOCKS.units, BLOCKS.values, protected=[("block", 4)])
    chosen_bars(kept, count=1)
    assert colours(drawn[0].axes[0]) == [KEPT, KEPT, DROPPED, KEPT, PROTECTED, KEPT]


def test_nothing_goes_where_no_amount_is_given():
    assert chosen(BLOCKS) == []
    assert chosen(BLOCKS, count=2) == [("block", 2), ("block", 4)]


def test_the_axis_is_logarithmic_for_positive_spread_scores_alone(drawn):
    near = Scores("m", "ppl", "block", 2.0, BLOCKS.units, [3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    for one in (BLOCKS, near, HALVES):
        bars(one)
    assert [figure.axes[0].get_yscale() for figure in drawn] == ["log", "linear", "linear"]
    low, high = drawn[2].axes[0].get_ylim()
    assert low < -1 < 3 < high


def test_halves_of_a_block_stand_side_by_side_and_negative_scores_hang(drawn):
    bars(HALVES)
    patches = drawn[0].axes[0].patches
    assert [bar.get_height() for bar in patches] == HALVES.values
    middles = [bar.get_x() + bar.get_width() / 2 for bar in patches]
    assert [round(middle) for middle in middles] == [0, 0, 1, 1, 2, 2]
    assert all(first < second for first, second in zip(middles[::2], middles[1::2], strict=True))


def test_an_infinite_score_reaches_the_top_and_is_marked(drawn):
    bars(Scores("m", "ppl", "block", 2.0, BLOCKS.units, [math.inf, *BLOCKS.values[1:]]))
    panel = drawn[0].axes[0]
    first = panel.patches[0]
    assert first.get_y() + first.get_height() == pytest.approx(panel.get_ylim()[1])
    assert [text.get_text() for text in panel.texts] == ["∞"]
    bars(Scores("m", "change", "block", None, BLOCKS.units, [-math.inf, *BLOCKS.values[1:]]))
    assert [text.get_text() for text in drawn[1].axes[0].texts] == ["-∞"]


def test_a_map_holds_the_places_of_every_unit_and_frames_what_goes(drawn):
    heat_map([BLOCKS, OTHER, HALVES], ["a", "b", "c"], [chosen(BLOCKS, count=2), [], [("ffn", 1)]])
    panel = drawn[0].axes[0]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["a", "b", "c, mha", "c, ffn"]
    places = {text.get_position(): text.get_text() for text in panel.texts}
    assert [places[column, 0] for column in range(6)] == ["6", "3", "2", "4", "1", "5"]
    assert [places[column, 3] for column in range(3)] == ["4", "2", "6"]
    assert (3, 3) not in places
    assert [(round(p.get_x() + 0.46), round(p.get_y() + 0.46)) for p in panel.patches] == [(2, 0), (4, 0), (1, 3)]
    shares = panel.images[0].get_array()
    assert shares[0].tolist() == pytest.approx([1.0, 0.4, 0.2, 0.6, 0.0, 0.8])


def test_scores_of_two_texts_are_drawn_as_increases_over_their_own_baselines(drawn):
    side_by_side(contrast(BLOCKS, OTHER, count=2))
    values = drawn[0].axes[0]
    assert values.lines[0].get_ydata() == pytest.approx([value / 2 - 1 for value in BLOCKS.values])
    assert values.lines[1].get_ydata() == pytest.approx([value / 4 - 1 for value in OTHER.values])
    assert "increase over the unpruned model's" in values.get_ylabel()


def test_a_removal_that_improves_the_model_is_drawn_as_a_multiple(drawn):
    better = Scores("model", "ppl", "block", 3.0, BLOCKS.units, BLOCKS.values)
    side_by_side(contrast(better, OTHER, count=2))
    assert drawn[0].axes[0].lines[0].get_ydata() == pytest.approx([value / 3 for value in BLOCKS.values])


def test_two_criteria_are_drawn_by_their_places(drawn):
    change = Scores("model", "change", "block", None, BLOCKS.units, [5.0, -1.0, 3.0, 4.0, 0.0, 9.0])
    side_by_side(contrast(BLOCKS, change, count=2))
    assert drawn[0].axes[0].lines[1].get_ydata() == pytest.approx([5, 1, 3, 4, 2, 6])
    assert drawn[0].axes[0].get_yscale() == "linear"


def test_the_choices_of_both_and_all_places_are_drawn(drawn):
    found = contrast(BLOCKS, OTHER, count=2)
    side_by_side(found)
    _, strip, scatter = drawn[0].axes
    assert strip.lines[0].get_xdata().tolist() == [index for _, index in found.dropped_a]
    assert strip.lines[1].get_xdata().tolist() == [index for _, index in found.dropped_b]
    points = [tuple(point) for group in scatter.collections for point in group.get_offsets().tolist()]
    assert sorted(points) == sorted((one.place_a, one.place_b) for one in found.differences)
    assert f"Spearman {found.correlation.spearman:.3f}" in scatter.get_title()


@pytest.mark.parametrize("count", [2, 30, 126])
def test_figures_of_shallow_and_of_deep_models_have_a_readable_size(count):
    units = [("block", index) for index in range(count)]
    one = Scores("m", "ppl", "block", 1.0, units, [2.0 + index % 7 for index in range(count)])
    for image in (bars(one), heat_map([one, one], ["a", "b"]), side_by_side(contrast(one, one, count=1))):
        width, height = size(image)
        assert 400 <= width <= 1900
        assert 250 <= height <= 900


def test_an_amount_that_cannot_be_had_is_refused():
    with pytest.raises(InputError, match="1 to 6 units"):
        chosen_bars(BLOCKS, count=7)
    with pytest.raises(InputError, match="protect 9"):
        chosen_bars(BLOCKS, protect="9")
