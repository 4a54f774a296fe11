"""Recovery: what a pruning took from a model, given back by forward passes or short local fits."""

from pyprune.recovery.repair import Repaired, repair, repair_with_report
from pyprune.recovery.repaired_search import RepairedSearch, search_with_repair

__all__ = ["Repaired", "RepairedSearch", "repair", "repair_with_report", "search_with_repair"]
