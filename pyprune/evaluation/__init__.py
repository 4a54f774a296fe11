"""How good a model is: perplexity and bits per byte of whole texts, accuracy on tasks, generated samples."""

from pyprune.evaluation.evaluate import evaluate
from pyprune.evaluation.result import Evaluation

__all__ = ["Evaluation", "evaluate"]
