"""Our models in lm-eval: importing this package registers the model `pyprune` with it.

    import pyprune.lm_eval
    lm_eval.simple_evaluate("pyprune", "pretrained=smollm2-135m,skip=10,11", tasks=["piqa"])

lm-eval (the EleutherAI evaluation harness) is an extra: `pip install pyprune[eval]`.
MissingExtraError, an ImportError, where it is missing.
"""

from __future__ import annotations

from pyprune.installation import require_lm_eval

require_lm_eval()

from pyprune.lm_eval.model import PyPruneLM  # noqa: E402 - only where lm-eval is there

__all__ = ["PyPruneLM"]
