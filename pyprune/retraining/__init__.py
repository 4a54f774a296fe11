"""Retraining a pruned model by gradient steps through all of it: LoRA, or all parameters."""

from pyprune.retraining.iterate import iterate
from pyprune.retraining.iterated import Iterated
from pyprune.retraining.train import Retrained, retrain, retrain_with_report

__all__ = ["Iterated", "Retrained", "iterate", "retrain", "retrain_with_report"]
