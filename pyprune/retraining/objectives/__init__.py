"""What a training makes small."""

from pyprune.retraining.objectives.next_token import NextToken
from pyprune.retraining.objectives.objective import Objective

__all__ = ["NextToken", "Objective"]
