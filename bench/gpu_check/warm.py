"""Part: compiles the Triton kernels that a timed part will start, beside the checks, so that it need not.

A kind that needs it has a function `warm(settings) -> str`, which runs once what the part will time, on a short model
of the same sizes, and says what that was. Triton keeps the kernels in its cache on disk, which all parts share.
"""

from __future__ import annotations

import importlib
from typing import Any

from bench.gpu_check.environment import gpu_report
from bench.gpu_check.settings import Save, Settings


def run(settings: Settings, save: Save) -> dict[str, Any]:
    """Warm the kind that the options name under "of"; the other options are that kind's."""
    kind = settings.options["of"]
    done = importlib.import_module(f"bench.gpu_check.{kind}").warm(settings)
    return {"gpu": gpu_report(), "of": kind, "done": done}
