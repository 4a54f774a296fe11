"""Regression: least squares of projections on a model's activations, from sums over calibration windows."""
