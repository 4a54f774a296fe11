"""The families of models that can be read and written; a new one is one file and one line here."""

from __future__ import annotations

from pyprune.errors import InputError
from pyprune.models.families.family import Family
from pyprune.models.families.llama import Llama
from pyprune.models.families.mistral import Mistral
from pyprune.models.families.qwen2 import Qwen2
from pyprune.models.families.qwen3 import Qwen3

FAMILIES: tuple[Family, ...] = (Llama(), Mistral(), Qwen2(), Qwen3())


def family_of(model_type: object, where: str) -> Family:
    """The family of a config.json's `model_type`; InputError names it when there is none."""
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    accepted = ", ".join(name for family in FAMILIES for name in family.model_types)
    raise InputError(f"{where}: model_type {model_type} is not supported; accepted: {accepted}")


def family_of_gguf(architecture: object, where: str) -> Family:
    """The family of a GGUF file's `general.architecture`; InputError names it when there is none."""
    for family in FAMILIES:
        if architecture in family.gguf_architectures:
            return family
    accepted = ", ".join(name for family in FAMILIES for name in family.gguf_architectures)
    raise InputError(f"{where}: GGUF architecture {architecture} is not supported; accepted: {accepted}")
