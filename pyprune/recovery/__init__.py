"""Recovery: what a pruning took from a model, given back by forward passes or short local fits."""

from pyprune.recovery.repair import Repaired, repair, repair_with_report

__all__ = ["Repaired", "repair", "repair_with_report"]
