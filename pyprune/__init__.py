"""pyprune: structured pruning of LLaMA-style language models, with kernels that make its speed measurable.

decoder = pyprune.load("smollm2-135m")
scores = pyprune.score(decoder, input_ids)                # perplexity without each block
pruning = pyprune.depth(scores, ratio=0.2)
smaller = pyprune.apply(decoder, pruning)
tokens = pyprune.Engine(decoder, max_batch=1, max_len=64).generate(input_ids, max_new_tokens=16, skip=pruning)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pyprune.errors import InputError, NativeLibraryWarning
from pyprune.installation import require_not_hiding
from pyprune.registration import register_model_types

if TYPE_CHECKING:
    # Functions from the modules that have their name: else mypy takes the one for the other.
    from pyprune.evaluation import Evaluation
    from pyprune.evaluation.evaluate import evaluate
    from pyprune.models import Decoder, to_transformers
    from pyprune.models.load import load
    from pyprune.models.load_any import load_any
    from pyprune.models.transformers_decoder import TransformersDecoder
    from pyprune.pruning import Pruning
    from pyprune.pruning.apply import apply, pad
    from pyprune.pruning.depth import depth
    from pyprune.pruning.index_map import index_map
    from pyprune.pruning.width import width
    from pyprune.recovery import RepairedSearch, search_with_repair
    from pyprune.recovery.repair import repair
    from pyprune.retraining.iterate import iterate
    from pyprune.retraining.iterated import Iterated
    from pyprune.retraining.train import retrain
    from pyprune.runtime import Engine, SamplingParams
    from pyprune.runtime.huggingface.accelerate import accelerate, restore
    from pyprune.runtime.padded_linear import PaddedLinear
    from pyprune.runtime.planner import MemoryPlan, plan_memory
    from pyprune.scoring import Scores, SearchResult
    from pyprune.scoring.perplexity import perplexity
    from pyprune.scoring.score import score
    from pyprune.scoring.searches.search import search
    from pyprune.study.recipes.run import recipe
    from pyprune.study.samples import samples

__version__ = "0.1.0"

__all__ = [
    "Decoder",
    "Engine",
    "Evaluation",
    "InputError",
    "Iterated",
    "MemoryPlan",
    "NativeLibraryWarning",
    "PaddedLinear",
    "Pruning",
    "RepairedSearch",
    "SamplingParams",
    "Scores",
    "SearchResult",
    "TransformersDecoder",
    "accelerate",
    "apply",
    "depth",
    "evaluate",
    "index_map",
    "iterate",
    "load",
    "load_any",
    "pad",
    "perplexity",
    "plan_memory",
    "recipe",
    "repair",
    "restore",
    "retrain",
    "samples",
    "score",
    "search",
    "search_with_repair",
    "to_transformers",
    "width",
]

# Imported when first asked for: torch takes seconds, and `pyprune --help` needs none of it.
_PACKAGES = {
    "evaluation": ("Evaluation", "evaluate"),
    "models": ("Decoder", "load", "to_transformers"),
    "models.load_any": ("load_any",),
    "models.transformers_decoder": ("TransformersDecoder",),
    "pruning": ("Pruning", "apply", "depth", "index_map", "pad", "width"),
    "recovery": ("RepairedSearch", "repair", "search_with_repair"),
    "retraining": ("Iterated", "iterate", "retrain"),
    "runtime": ("Engine", "SamplingParams"),
    "runtime.planner": ("MemoryPlan", "plan_memory"),
    "runtime.huggingface": ("accelerate", "restore"),
    "runtime.padded_linear": ("PaddedLinear",),
    "scoring": ("Scores", "SearchResult", "perplexity", "score", "search"),
    "study.recipes.run": ("recipe",),
    "study.samples": ("samples",),
}


require_not_hiding()
register_model_types()


def __getattr__(name: str) -> Any:
    for package, names in _PACKAGES.items():
        if name in names:
            value = getattr(importlib.import_module(f"pyprune.{package}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'pyprune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
