"""What the closed forms cost on SmolLM2 in float32, against plain forward passes of teacher and student."""

from __future__ import annotations

from statistics import median

import pytest

from bench.rounds import Side
from bench.tables import interval_text
from pyprune import Pruning, apply
from pyprune.models.decoder import Decoder
from pyprune.pruning.layerwise import Layerwise
from pyprune.recovery.closed_form import closed_form
from pyprune.recovery.fitting import Fitting
from pyprune.scoring.calibration import calibration

FIFTH = Pruning(blocks=(4, 5, 7, 13, 14, 17, 18, 19))
LIMITS = {"float32 products summed in float64": 1.5, "float64 products": 2.2}


def forward(decoder: Decoder, ids) -> None:
    """All blocks over all samples, layer by layer; no head, which a repair does not need either."""
    states = Layerwise(decoder, ids)
    for block in decoder.blocks:
        states.advance(block)


@pytest.mark.parametrize(("samples", "tokens"), [(128, 128), (8, 24)])
@pytest.mark.parametrize("method", ["refit", "refit-all", "refit-all-o"])
def test_closed_forms_against_plain_forward_passes(
    interleaved, benchmark, table, smollm2, method: str, samples: int, tokens: int
):
    """A fifth of the blocks gone; the ridge chosen on held-out windows, as the default is."""
    ids = calibration(smollm2, samples=samples, seq_len=tokens).input_ids
    pruned = apply(smollm2, FIFTH)

    def passes() -> None:
        forward(smollm2, ids)
        forward(pruned, ids)

    sides = {"plain forward passes": Side(passes)}
    for name in LIMITS:
        fitting = Fitting(exact=name == "float64 products")
        sides[name] = Side(lambda fitting=fitting: closed_form(smollm2, pruned, ids, method, fitting))
    seconds = interleaved(sides, 3)
    for name, limit in LIMITS.items():
        table(
            f"closed forms of repair, {samples} x {tokens} tokens, a fifth of the blocks gone",
            {
                "method": method,
                "products": name,
                "seconds": f"{median(seconds[name]):.1f}",
                "plain forward passes": f"{median(seconds['plain forward passes']):.1f}",
                "times these": interval_text(benchmark.extra_info["ratio"][name]),
                "limit": f"{limit}",
            },
        )
