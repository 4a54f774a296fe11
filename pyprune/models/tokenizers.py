"""Tokenizers, loaded when they are first asked for: from a GGUF file it takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyprune.errors import InputError
from pyprune.models.decoder import Decoder, TokenizerSource
from pyprune.models.tensors import one_line

_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


def directory_source(directory: Path) -> TokenizerSource | None:
    """The tokenizer of a Hugging Face directory, None when it holds no tokenizer files."""
    return TokenizerSource(str(directory)) if any((directory / name).is_file() for name in _FILES) else None


def load_tokenizer(decoder: Decoder) -> Any:
    """A new transformers tokenizer for `decoder`; InputError when it has none or its files cannot be read."""
    source = decoder.tokenizer_source
    if source is None:
        raise InputError(f"{decoder.name}: has no tokenizer; token ids are accepted where text is not")

    from transformers import AutoTokenizer

    options = {} if source.gguf_file is None else {"gguf_file": source.gguf_file}
    try:
        return AutoTokenizer.from_pretrained(source.path, **options)
    except Exception as error:  # each tokenizer library has exceptions of its own
        path = Path(source.path) / (source.gguf_file or "")
        raise InputError(f"{path}: its tokenizer cannot be read ({one_line(error)})") from None
