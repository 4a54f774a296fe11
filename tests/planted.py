"""Faults planted in C++ sources, chosen as the program runs: one compilation has them all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

CHOSEN = "PLANTED_FAULT"
"""The variable whose number is the place of the fault that works. Without it, or beyond the last: none."""

_CHOICE = f"""
#include <cstdlib>
namespace {{
bool planted(int fault) {{
  static const char* const number = std::getenv("{CHOSEN}");
  static const int chosen = number ? std::atoi(number) : -1;
  return chosen == fault;
}}
}}  // namespace
"""


def planted(source: str, faults: Iterable[Sequence]) -> str:
    """A header with every fault in it. Each begins with a place in the source, `{}` where an expression stands there
    once, the right expression and the wrong one."""
    for number, (place, right, wrong, *_) in enumerate(faults):
        assert source.count(place.format(right)) == 1, place.format(right)
        chosen = place.replace("constexpr", "const").format(f"(planted({number}) ? ({wrong}) : ({right}))")
        source = source.replace(place.format(right), chosen)
    assert source.count("#pragma once\n") == 1
    return source.replace("#pragma once\n", f"#pragma once\n{_CHOICE}")
