"""Running a decoder: whole sequences (`sequence`) and the block-skipping generation engine (`engine`)."""

from pyprune.runtime.engine import Engine
from pyprune.runtime.sampling_params import SamplingParams

__all__ = ["Engine", "SamplingParams"]
