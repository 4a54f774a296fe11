"""parse_amount: shares and counts as people write them."""

import pytest

from pyprune.errors import InputError
from pyprune.pruning import parse_amount


@pytest.mark.parametrize(
    ("text", "ratio", "count"),
    [
        ("20%", 0.2, None),
        (" 12.5 % ", 0.125, None),
        ("0.2", 0.2, None),
        (".35", 0.35, None),
        ("0.5%", 0.005, None),
        ("6", None, 6),
        ("1", None, 1),
    ],
)
def test_amounts(text, ratio, count):
    amount = parse_amount(text)
    assert amount.count == count
    assert amount.ratio == (None if ratio is None else pytest.approx(ratio, rel=1e-12))


@pytest.mark.parametrize(
    "text", ["120%", "100%", "0%", "0", "0.0", "1.0", "1.5", "-3", "-5%", "abc", "", "%", "nan", "6x"]
)
def test_bad_amounts_are_refused(text):
    with pytest.raises(InputError):
        parse_amount(text)
