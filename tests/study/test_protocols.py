"""The named protocols are those of the paper and of the documentation."""

from __future__ import annotations

import pytest

from pyprune.errors import InputError
from pyprune.study.protocols import PROTOCOLS, Protocol, protocol_named


def test_the_papers_protocol_has_the_papers_numbers():
    paper = protocol_named("paper")
    assert (paper.input_tokens, paper.output_tokens, paper.warmups, paper.runs) == (12, (128, 512), 10, 20)


def test_an_unknown_protocol_is_named_with_the_known_ones():
    with pytest.raises(InputError, match="protocol 'fast': quick or paper is expected"):
        protocol_named("fast")


def test_a_protocol_of_ones_own_is_taken_as_it_is():
    own = Protocol("own", 3, (4,), 0, 1, 256)
    assert protocol_named(own) is own


def test_evaluation_tokens_are_whole_windows():
    for protocol in PROTOCOLS.values():
        assert protocol.evaluation_tokens % protocol.evaluation_window == 0
