"""What other tools write and read: their libraries as candidates, and rankings and prunings in their forms.

Written against their documented files and arguments; none of them is imported.
"""

from pyprune.scoring.other_tools.llm_drop import llm_drop_lists, pruning_of_llm_drop
from pyprune.scoring.other_tools.mergekit import mergekit_config, pruning_of_mergekit
from pyprune.scoring.other_tools.optipfair import layer_importance, removed_layers
from pyprune.scoring.other_tools.puzzletron import puzzletron_candidates

__all__ = [
    "layer_importance",
    "llm_drop_lists",
    "mergekit_config",
    "pruning_of_llm_drop",
    "pruning_of_mergekit",
    "puzzletron_candidates",
    "removed_layers",
]
