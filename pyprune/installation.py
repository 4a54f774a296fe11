"""A folder of sources named `pyprune` in the current directory hides the installed package: that is said at once."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path


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
