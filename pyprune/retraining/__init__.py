"""Retraining a pruned model by gradient steps through all of it: LoRA, or all parameters."""

from pyprune.retraining.train import Retrained, retrain, retrain_with_report

__all__ = ["Retrained", "retrain", "retrain_with_report"]
