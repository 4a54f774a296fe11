"""transformers' configuration objects."""

from __future__ import annotations

from typing import Any

from pyprune.errors import InputError
from pyprune.models.tensors import one_line


def transformers_config(config: dict[str, Any], where: str) -> Any:
    """The transformers configuration object of a plain dict; InputError when transformers refuses it."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    plain = {key: value for key, value in config.items() if key != "transformers_version"}
    try:
        return CONFIG_MAPPING[plain["model_type"]].from_dict(plain)
    except Exception as error:  # each validator of transformers has exceptions of its own
        raise InputError(f"{where}: configuration refused by transformers ({one_line(error)})") from None
