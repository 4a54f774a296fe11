"""Prunings: make them (depth, width), keep them as data, and make them permanent."""

from pyprune.models.pruning import Pruning
from pyprune.pruning.amount import Amount, parse_amount, parse_ratio
from pyprune.pruning.apply import apply, pad
from pyprune.pruning.depth import depth
from pyprune.pruning.importance import Importance
from pyprune.pruning.index_map import KeptBlock, index_map
from pyprune.pruning.width import width

__all__ = [
    "Amount",
    "Importance",
    "KeptBlock",
    "Pruning",
    "apply",
    "depth",
    "index_map",
    "pad",
    "parse_amount",
    "parse_ratio",
    "width",
]
