"""Running a decoder: whole sequences (`sequence`) and the block-skipping generation engine (`engine`)."""

from pyprune.runtime.engine import Engine

__all__ = ["Engine"]
