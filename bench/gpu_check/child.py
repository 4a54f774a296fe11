"""Runs one part in its own process: `python -m bench.gpu_check.child SETTINGS`, SETTINGS being JSON."""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
import traceback
from typing import Any

from bench.gpu_check.settings import ROOT, Settings
from pyprune.files import write_json


def main(argv: list[str]) -> int:
    """Run the part and keep its result, whole or so far, in the file it was given; 0 when it came to its end."""
    settings = Settings.from_json(argv[0])

    def save(result: dict[str, Any]) -> None:
        write_json(settings.out, finite({"complete": False, "error": None, "result": result}))
        kept["result"] = result

    kept: dict[str, Any] = {"result": {}}
    try:
        make_importable()
        result = importlib.import_module(f"bench.gpu_check.{settings.kind}").run(settings, save)
    except BaseException as error:
        traceback.print_exc()
        text = f"{type(error).__name__}: {error}"
        write_json(settings.out, finite({"complete": False, "error": text, "result": kept["result"]}))
        return 1
    write_json(settings.out, finite({"complete": True, "error": None, "result": result}))
    return 0


def make_importable() -> None:
    """`pyprune.triton_kernels` from the checkout, where no install has put it beside the package."""
    import pyprune

    name = "pyprune.triton_kernels"
    if importlib.util.find_spec(name) is not None:
        return
    folder = ROOT / "triton_kernels"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    pyprune.triton_kernels = module


def finite(data: Any) -> Any:
    """The same data with NaN and infinities as words, which JSON lacks."""
    if isinstance(data, float) and not math.isfinite(data):
        return str(data)
    if isinstance(data, dict):
        return {str(key): finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [finite(value) for value in data]
    return data


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
