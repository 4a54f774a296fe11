"""`import pyprune` makes transformers know pyprune's model types, whichever of the two is imported first.

transformers is not imported for it (it and torch take seconds): where its AutoConfig is not there yet, a finder waits
for the import of the module that has it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

AUTO_CONFIG = "transformers.models.auto.configuration_auto"


def register_model_types() -> None:
    """Enter the model types in transformers' Auto classes, now or as soon as those are imported."""
    if AUTO_CONFIG in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _Waiting())


def _register() -> None:
    importlib.import_module("pyprune.models.huggingface.configuration").register(before_use=_register_models)


def _register_models() -> None:
    importlib.import_module("pyprune.models.huggingface.modeling").register()


class _Waiting(MetaPathFinder):
    """Finds AUTO_CONFIG, once, as the other finders do, and registers when its code has run."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != AUTO_CONFIG:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        loader = None if spec is None else spec.loader
        if loader is not None:
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                del loader.exec_module  # the class's own again, for a reload
                execute(module)
                _register()

            loader.exec_module = exec_module  # type: ignore[method-assign]  # of this one loader, once
        return spec
