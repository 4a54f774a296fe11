"""The checks of numbers: which values are whole numbers, and what the others are told."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyprune.checks import is_int, is_number, is_whole, require_whole
from pyprune.errors import InputError


@pytest.mark.parametrize("value", [3, np.int64(3), np.array(3), torch.tensor(3), torch.tensor(3, dtype=torch.uint8)])
def test_whole_numbers_of_every_library(value):
    assert is_whole(value)
    assert type(require_whole("n", value, 3, 3)) is int


@pytest.mark.parametrize(
    "value",
    [True, np.bool_(True), torch.tensor(True), 3.0, np.float64(3), torch.tensor(3.0), "3", None, [3], np.array([3]),
     torch.tensor([3])],
)  # fmt: skip
def test_no_whole_numbers(value):
    assert not is_whole(value)
    assert not is_int(value)
    with pytest.raises(InputError, match=r"^n: .* given; a whole number is accepted$"):
        require_whole("n", value, 0)


def test_an_int_is_pythons_own():
    assert is_int(3)
    assert not is_int(np.int64(3))


def test_a_number_is_real_and_no_bool():
    assert is_number(1)
    assert is_number(np.float32(0.5))
    assert not is_number(True)
    assert not is_number("1")
    assert not is_number(1j)


def test_the_limits_are_named():
    with pytest.raises(InputError, match=r"^n: 0 given; 1 or more is accepted$"):
        require_whole("n", 0, 1)
    with pytest.raises(InputError, match=r"^n: 65 given; 1 to 64 is accepted$"):
        require_whole("n", 65, 1, 64)
