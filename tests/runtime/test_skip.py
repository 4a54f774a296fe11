from __future__ import annotations

import pytest

from pyprune import InputError, Pruning
from pyprune.runtime.skip import skip_plan


def test_every_way_to_name_a_skip_gives_the_same_skip_plan(tiny):
    pruning = Pruning(blocks=[1], mha=[3], ffn=[0])
    expected = skip_plan(tiny, {"blocks": [1], "mha": [3], "ffn": [0]})
    assert expected.mha == (True, False, True, False, True)
    assert expected.ffn == (False, False, True, True, True)
    assert skip_plan(tiny, pruning) == expected
    assert skip_plan(tiny, [2]) == skip_plan(tiny, (2,)) == skip_plan(tiny, {"blocks": {2}})
    assert skip_plan(tiny).mha == (True,) * 5


@pytest.mark.parametrize(
    ("skip", "message"),
    [
        ([5], "block 5 does not exist; 0 to 4"),
        ({"mha": [-1]}, "MHA of block -1"),
        ({"ffn": [9]}, "FFN of block 9"),
        ({"heads": [1]}, "'heads'"),
        (range(5), "all 5 blocks"),
        ("2", "'2' is not a list"),
        (3, "3 is not a list"),
        ([1.5], "1.5 is not a block index"),
        ([True], "True is not a block index"),
    ],
)
def test_a_bad_skip_is_refused(tiny, skip, message: str):
    with pytest.raises(InputError, match=message):
        skip_plan(tiny, skip)


def test_a_pruning_that_narrows_widths_cannot_be_a_skip(tiny):
    with pytest.raises(InputError, match="neurons"):
        skip_plan(tiny, Pruning(neurons={1: [0, 1]}))
