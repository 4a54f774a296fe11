"""Prunings: make them (depth, width), keep them as data, and make them permanent."""

from pyprune.pruning.amount import Amount, parse_amount, parse_ratio
from pyprune.pruning.apply import apply, pad
from pyprune.pruning.depth import depth
from pyprune.pruning.pruning import Pruning
from pyprune.pruning.width import width

__all__ = ["Amount", "Pruning", "apply", "depth", "pad", "parse_amount", "parse_ratio", "width"]
