"""Measuring depth against width pruning: protocols, the comparison, and what is drawn from its results."""
