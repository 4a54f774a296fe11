"""What is installed: a folder of sources that hides the installed package is named at once, and a missing extra."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

from pyprune.errors import MissingExtraError


def require_not_hiding() -> None:
    """ImportError where this package is a folder of sources and the complete package is installed elsewhere.

    Sources are known by what only an installation puts beside them, `pyprune.triton_kernels`. Where nothing is
    installed they may be used as they are.
    """
    if importlib.util.find_spec("pyprune.triton_kernels") is not None:
        return
    package = Path(__file__).resolve().parent
    for distribution in importlib.metadata.distributions(name="pyprune"):
        installed = Path(str(distribution.locate_file("pyprune"))).resolve()
        if installed != package and (installed / "triton_kernels").is_dir():
            raise ImportError(
                f"{package} hides the installed pyprune ({installed}): start Python in another folder, or install "
                f"these sources in its place: pip install --editable {package.parent}"
            )


def require_lm_eval() -> None:
    """MissingExtraError, with what installs it, where lm-eval is missing."""
    try:
        missing = importlib.util.find_spec("lm_eval") is None
    except ValueError:  # it is None in sys.modules: kept out
        missing = True
    if missing:
        raise MissingExtraError("lm-eval is not installed, which tasks need: pip install pyprune[eval]")
