"""Which units can go: calibration windows, criteria, and the batched perplexity scorer."""

from pyprune.scoring.perplexity import perplexity
from pyprune.scoring.score import score
from pyprune.scoring.scores import Scores

__all__ = ["Scores", "perplexity", "score"]
