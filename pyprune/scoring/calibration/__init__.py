"""Calibration and evaluation tokens: their sources, the windows that are drawn, and their fingerprints."""

from pyprune.scoring.calibration.demonstrations import CALIBRATION, EVALUATION
from pyprune.scoring.calibration.fingerprint import fingerprint
from pyprune.scoring.calibration.sources import public_name, require_text, same_text
from pyprune.scoring.calibration.token_files import LabelledSamples, read_labelled
from pyprune.scoring.calibration.windows import (
    BOS_RULES,
    PACKINGS,
    Windows,
    calibration,
    check_window_options,
    evaluation,
    is_random,
    random_windows,
    set_apart,
)

__all__ = [
    "BOS_RULES",
    "CALIBRATION",
    "EVALUATION",
    "PACKINGS",
    "LabelledSamples",
    "Windows",
    "calibration",
    "check_window_options",
    "evaluation",
    "fingerprint",
    "is_random",
    "public_name",
    "random_windows",
    "read_labelled",
    "require_text",
    "same_text",
    "set_apart",
]
