"""Which units can go: calibration windows, criteria, and the batched perplexity scorer."""

from pyprune.scoring.contrast import Contrast, contrast
from pyprune.scoring.perplexity import perplexity
from pyprune.scoring.replacements import WithResidual
from pyprune.scoring.score import score
from pyprune.scoring.scores import Scores
from pyprune.scoring.searches import SearchResult, search

__all__ = ["Contrast", "Scores", "SearchResult", "WithResidual", "contrast", "perplexity", "score", "search"]
