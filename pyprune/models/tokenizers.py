"""Tokenizers, loaded when first asked for and copied from then on: a GGUF file's takes ten seconds, its copy 0.2."""

from __future__ import annotations

import copy
import functools
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
    """A transformers tokenizer for `decoder`, the caller's own to change; InputError when it has none or its files
    cannot be read."""
    source = decoder.tokenizer_source
    if source is None:
        raise InputError(f"{decoder.name}: has no tokenizer; token ids are accepted where text is not")
    return copy.deepcopy(_read(source, _state(source)))


def _state(source: TokenizerSource) -> tuple[tuple[str, int, int], ...]:
    """Names, times and sizes of the files read: a tokenizer written anew under the same path is read anew."""
    folder = Path(source.path)
    files = sorted(folder.iterdir()) if source.gguf_file is None and folder.is_dir() else []
    if source.gguf_file is not None and (folder / source.gguf_file).is_file():
        files = [folder / source.gguf_file]
    return tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files if file.is_file())


@functools.lru_cache(maxsize=4)
def _read(source: TokenizerSource, state: tuple[tuple[str, int, int], ...]) -> Any:
    from transformers import AutoTokenizer

    options = {} if source.gguf_file is None else {"gguf_file": source.gguf_file}
    try:
        return AutoTokenizer.from_pretrained(source.path, **options)
    except Exception as error:  # each tokenizer library has exceptions of its own
        path = Path(source.path) / (source.gguf_file or "")
        raise InputError(f"{path}: its tokenizer cannot be read ({one_line(error)})") from None
