"""Choosing units to remove together: one-shot, greedy, contiguous windows."""

from pyprune.scoring.searches.result import SearchResult
from pyprune.scoring.searches.search import search

__all__ = ["SearchResult", "search"]
