"""Whether lm-eval is there."""

from __future__ import annotations

import importlib.util

from pyprune.errors import InputError


def require_lm_eval() -> None:
    """InputError, with what installs it, where lm-eval is missing."""
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError("lm-eval is not installed, which tasks need: pip install pyprune[eval]")
