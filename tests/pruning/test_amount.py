"""parse_amount and parse_ratio: shares and counts as people write them."""

import re

import pytest

from pyprune.errors import InputError
from pyprune.pruning import parse_amount, parse_ratio


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


NEITHER = ["120%", "100%", "0%", "0", "00", "0.0", "1.0", "1.5", "-3", "-5%", "abc", "", "%", "nan", "inf", "6x",
           "1.2.3", "1_0%", "9" * 5000]  # fmt: skip


@pytest.mark.parametrize("text", NEITHER)
def test_bad_amounts_are_refused_with_both_forms_that_are_accepted(text):
    accepted = "a share of the parameters above 0 and below 1 (20% or 0.2) or a number of units from 1 (6) is expected"
    with pytest.raises(InputError, match=re.escape(f"amount {text!r}: {accepted}")):
        parse_amount(text)


@pytest.mark.parametrize(
    ("text", "ratio"), [("20%", 0.2), ("0.2", 0.2), (" 12.5 % ", 0.125), ("1e-05", 1e-5), ("5e-1%", 0.005)]
)
def test_ratios(text, ratio):
    assert parse_ratio(text) == pytest.approx(ratio, rel=1e-12)


@pytest.mark.parametrize("text", [*NEITHER, "6", "1"])
def test_where_a_ratio_is_expected_a_count_is_neither_accepted_nor_offered(text):
    accepted = "a share of the parameters above 0 and below 1 (20% or 0.2) is expected"
    with pytest.raises(InputError, match=re.escape(f"ratio {text!r}: {accepted}")):
        parse_ratio(text)
