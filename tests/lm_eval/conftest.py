"""The small model with a tokenizer that evaluations are tested with."""

from tests.evaluation.conftest import model_directory

__all__ = ["model_directory"]
